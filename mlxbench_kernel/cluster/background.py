"""What uses the ranks in the background, and waits while something else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from mlxbench_kernel.cluster.turns import Show


class Occupant(Protocol):
    """Uses the ranks whenever nobody else does."""

    def between(self) -> AbstractContextManager[None]:
        """Have it wait while the block uses the ranks."""

    def ended(self) -> None:
        """Its ranks were ended."""

    def is_own_thread(self) -> bool:
        """Whether this is the thread in which it uses them."""


def _alone(show: Show) -> AbstractContextManager[None]:
    """In place of a stepper's `between`, where there is none."""
    return nullcontext()


class Background:
    """Those in the background, at most one of a kind; the first gives way to the others.

    Attributes
    ----------
    server : Occupant or None
        Answers requests of other programs. It uses the ranks only while nobody is in `between`,
        so a run of the stepper has it wait too.
    stepper : function
        Has a run of the stepper wait; told what to show meanwhile.
    """

    def __init__(self) -> None:
        self.server: Occupant | None = None
        self.stepper: Callable[[Show], AbstractContextManager[None]] = _alone

    def ended(self) -> None:
        """The ranks were ended."""
        if self.server is not None:
            self.server.ended()

    @contextmanager
    def between(self, show: Show) -> Iterator[None]:
        """Have them wait while the block uses the ranks; `show` as for `Turns.taken`."""
        server, stepper = self.server, self.stepper
        with ExitStack() as waiting:
            if server is not None:
                if server.is_own_thread():
                    yield
                    return
                waiting.enter_context(server.between())
            waiting.enter_context(stepper(show))
            yield
