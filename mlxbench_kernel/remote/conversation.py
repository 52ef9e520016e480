"""`Conversation`: a chat with a language model on ranks, as code."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mlxbench_kernel.errors import BenchError, GivenUp, UsageError
from mlxbench_kernel.remote import messages_file
from mlxbench_kernel.remote.language_model import Generated, ModelOnRanks

Draw = Callable[[Generated, str], None]
Changed = Callable[[], None]
NOTHING = Generated("", [], "", {}, {})
SOFT_SECONDS = 1.0  # for ranks to end after the same token, before they are interrupted
KEEP = "chat"  # the name of the KV cache on the ranks


class Conversation:
    """A chat: what was said, and the way to say more.

    The KV cache stays on the ranks from one answer to the next, so that only what is new is read.

    Parameters
    ----------
    lm
        Who answers.
    system
        What the model is told before all else; "" for nothing.
    max_tokens
        Of an answer, at most.
    seed
        Of the sampling; None for a random one with each answer.
    draw
        Makes what shows an answer while it comes: is told what there is, and who is late.
    **options
        Of the sampling, as for `ModelOnRanks.generate_on_ranks`.

    Attributes
    ----------
    max_tokens, seed, options
        As given, the options by mlx-lm's names; may be changed between two answers.
    asking : list of dict
        The messages that are being answered; empty while none are.
    so_far : Generated
        What there is of that answer.
    status : str
        Who is waited for; "" for nobody.
    last : Generated or None
        The last answer with its figures, also if it was stopped.

    Raises
    ------
    UsageError
        The model has no chat template, or an option cannot be.

    Examples
    --------
    >>> chat = lm.conversation(system="You answer in one sentence.")
    >>> chat.say("What is a ring all-reduce?")
    >>> chat.messages[-1]["content"]
    """

    def __init__(
        self,
        lm: ModelOnRanks,
        system: str = "",
        *,
        max_tokens: int = 512,
        seed: int | None = None,
        draw: Callable[[], Draw] = lambda: lambda found, status: None,
        **options: Any,
    ) -> None:
        from mlxbench_kernel.models import sampling

        if not lm.has_chat_template:
            raise UsageError(
                f"{Path(lm.path).name} has no chat template, so it cannot chat: load a model that "
                f'was made for it, or type {lm.name}.generate("text to go on with")'
            )
        self.lm = lm
        self.max_tokens, self.seed = max_tokens, seed
        self.options: dict[str, Any] = sampling.check(options)
        self.asking: list[dict[str, str]] = []
        self.so_far, self.status = NOTHING, ""
        self.last: Generated | None = None
        self._draw = draw
        self._messages = [{"role": "system", "content": system}] if system else []
        self._stopping = False
        self._answering = threading.Lock()
        self._watchers: list[Changed] = []

    def __repr__(self) -> str:
        name = Path(self.lm.path).name
        turns = sum(each["role"] == "user" for each in self._messages)
        return f"Conversation with {name}, {turns} turn{'s'[: turns != 1]}"

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was said, as ``role`` and ``content``; a copy."""
        return [dict(each) for each in self._messages]

    @property
    def system(self) -> str:
        """What the model is told before all else; may be set between two answers."""
        first = self._messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else ""

    @system.setter
    def system(self, text: str) -> None:
        said = [each for each in self._messages if each["role"] != "system"]
        self._messages = [*([{"role": "system", "content": text}] if text else []), *said]
        self._tell()

    @property
    def stopping(self) -> bool:
        """Whether an answer is on its way that was stopped."""
        return self._stopping and bool(self.asking)

    def watch(self, changed: Changed) -> Changed:
        """Have a function called, on any thread, after something was said; the end of that."""
        self._watchers.append(changed)

        def end() -> None:
            with suppress(ValueError):
                self._watchers.remove(changed)

        return end

    def say(self, text: str, draw: Draw | None = None) -> Generated:
        """Say something, and have the model answer.

        Parameters
        ----------
        text
            What is said.
        draw
            Shows the answer while it comes, in place of what the conversation was made with.

        Returns
        -------
        Generated
            The answer, which is in `messages` too.

        Raises
        ------
        UsageError
            The text is empty, a setting cannot be, or an answer is on its way.
        ClusterError
            A rank is gone. What was said until then stays; without an answer the question is
            taken back.
        GivenUp
            Ctrl-C or `stop`; likewise.
        """
        if not text.strip():
            raise UsageError("nothing was said: give some text")
        return self._answer([*self._messages, {"role": "user", "content": text}], draw)

    def regenerate(self, draw: Draw | None = None) -> Generated:
        """Have the last question answered anew; raises as `say` does."""
        asked = [n for n, each in enumerate(self._messages) if each["role"] == "user"]
        if not asked:
            raise UsageError('nothing was asked yet: type chat.say("…")')
        return self._answer(self._messages[: asked[-1] + 1], draw)

    def undo(self) -> str:
        """Take the last question and its answer back; the question.

        Raises
        ------
        UsageError
            Nothing was asked.
        """
        asked = [n for n, each in enumerate(self._messages) if each["role"] == "user"]
        if not asked:
            raise UsageError("nothing was asked yet, so there is nothing to take back")
        question = self._messages[asked[-1]]["content"]
        self._messages = self._messages[: asked[-1]]
        self._tell()
        return question

    def clear(self) -> None:
        """Begin anew, with the same system prompt."""
        self._messages = [each for each in self._messages if each["role"] == "system"]
        self.last = None
        self._tell()

    def stop(self) -> None:
        """Stop the answer that is on its way, from any thread; the text so far stays."""
        self._stopping = True
        self._tell()

    # -- files -----------------------------------------------------------------------

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write what was said as JSON: a list of messages with ``role`` and ``content``.

        Raises
        ------
        StorageError
            The file cannot be written; what was there before still is.
        """
        messages_file.write(self._messages, Path(file).expanduser())

    def load(self, file: str | os.PathLike[str]) -> Self:
        """Go on with what was said in a file, see `save`.

        Raises
        ------
        UsageError
            There is no such file, or something else is in it; nothing was changed.
        """
        self._messages = messages_file.read(Path(file).expanduser())
        self.last = None
        self._tell()
        return self

    # -- answering -------------------------------------------------------------------

    def _tell(self) -> None:
        for changed in list(self._watchers):
            changed()

    def _answer(self, messages: list[dict[str, str]], draw: Draw | None) -> Generated:
        if not self._answering.acquire(blocking=False):
            raise UsageError("an answer is on its way: stop it first (chat.stop())")
        try:
            self._stopping = False
            self.asking, self.so_far, self.status = messages, NOTHING, ""
            self._tell()
            return self._generate(messages, draw or self._draw())
        finally:
            self.asking, self.status = [], ""
            self._answering.release()
            self._tell()

    def _generate(self, messages: list[dict[str, str]], draw: Draw) -> Generated:
        def heard(found: Generated) -> None:
            self.so_far = found
            self._tell()

        halted: float | None = None

        def show(status: str) -> None:
            nonlocal halted
            if self._stopping and halted is None and self.so_far.figures and self.lm.halt():
                halted = time.monotonic()
            elif self._stopping and (halted is None or time.monotonic() - halted > SOFT_SECONDS):
                raise KeyboardInterrupt  # in the thread that waits for the ranks: it stops them
            if status != self.status:
                self.status = status
                self._tell()
            draw(self.so_far, status)

        try:
            found = self.lm.generate_on_ranks(
                messages, self.max_tokens, seed=self.seed, keep=KEEP,
                heard=heard, show=show, **self.options,
            )  # fmt: skip
        except (KeyboardInterrupt, BenchError) as error:
            self._keep(messages, replace(self.so_far, finish="interrupted"), draw)
            if isinstance(error, KeyboardInterrupt):
                raise self._stopped() from None
            raise
        self._keep(messages, found, draw)
        if found.finish == "interrupted":
            raise self._stopped()
        return found

    def _stopped(self) -> GivenUp:
        kept = "the text so far is kept" if self.so_far.text else "nothing was said yet"
        return GivenUp(f"stopped; {kept}, and the model is as it was")

    def _keep(self, messages: list[dict[str, str]], found: Generated, draw: Draw) -> None:
        """Have an answer be part of what was said, unless there is none."""
        if found.text or found.finish != "interrupted":
            self._messages = [*messages, {"role": "assistant", "content": found.text}]
            self.last = found
            draw(found, "")
