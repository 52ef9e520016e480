"""Ends a generation on all ranks after the same token, so that none waits for another."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from mlxbench_kernel.rank.answers import ANSWERS

ASK, END = "generation_ask", "generation_end"  # calls on the control channel
WAIT_SECONDS = 2.0  # for `end` after `ask`: whoever asked may be gone


class Halt:
    """What a generation on this rank asks after each token.

    Somebody who wants to end it `ask`s all ranks, at which token each will wait, and then tells
    all of them to `end` at the last of these. Both answer on the control channel while the block
    of ``with`` runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._waits_at: int | None = None
        self._last: int | None = None
        self._told = threading.Event()

    def __enter__(self) -> Self:
        ANSWERS[ASK], ANSWERS[END] = self.ask, self.end
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in (ASK, END):
            ANSWERS.pop(name, None)

    def ask(self) -> int:
        """The number of tokens at which this rank waits for `end`."""
        with self._lock:
            if self._waits_at is None:
                self._waits_at = self._count + 1
            return self._waits_at

    def end(self, last: int) -> None:
        """Have the generation end after so many tokens."""
        self._last = last
        self._told.set()

    def __call__(self, tokens: int) -> bool:
        """Whether to end now, after so many tokens; waits where that is not decided yet."""
        with self._lock:
            self._count = tokens
            waits = self._waits_at is not None and tokens >= self._waits_at
        if not waits:
            return False
        if not self._told.wait(WAIT_SECONDS):
            with self._lock:
                self._waits_at = None  # nobody has decided: it goes on
            return False
        return self._last is not None and tokens >= self._last
