"""Auto mode in the prompt of a terminal: ``ranks 0-1 In [3]:``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.terminal.prompts import Prompts
from pygments.token import Token


class RanksPrompts(Prompts):
    """The shell's prompts with the ranks in front of the input prompt.

    Parameters
    ----------
    previous
        The prompts that were there, the user's own perhaps.
    text
        What stands in front.
    """

    def __init__(self, previous: Prompts, text: str) -> None:
        super().__init__(previous.shell)
        self._previous = previous
        self._text = text

    def in_prompt_tokens(self) -> list[tuple[Any, str]]:
        """Tokens of the input prompt."""
        return [(Token.Prompt, f"{self._text} "), *self._previous.in_prompt_tokens()]

    def continuation_prompt_tokens(
        self, width: int | None = None, **where: Any
    ) -> list[tuple[Any, str]]:
        """Tokens of the following lines, as wide as the input prompt."""
        if width is None:
            width = sum(len(text) for _, text in self.in_prompt_tokens())
        return list(self._previous.continuation_prompt_tokens(width, **where))

    def rewrite_prompt_tokens(self) -> list[tuple[Any, str]]:
        """Tokens before input that IPython has rewritten."""
        return list(self._previous.rewrite_prompt_tokens())

    def out_prompt_tokens(self) -> list[tuple[Any, str]]:
        """Tokens of the output prompt."""
        return list(self._previous.out_prompt_tokens())


def show_in_prompt(shell: Any, text: str) -> Callable[[], None]:
    """Put `text` in front of the prompt of a terminal shell; returns what undoes it."""
    previous = shell.prompts
    shell.prompts = RanksPrompts(previous, text)

    def restore() -> None:
        shell.prompts = previous

    return restore
