"""Magics whose line begins with a word: what there is, what each takes, and help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel.arguments import nearest


@dataclass(frozen=True)
class Word:
    """What can follow the name of a magic.

    Attributes
    ----------
    takes
        What stands after it, "" for nothing, in brackets if it may be left out.
    example
        Right use of it.
    summary
        What it does.
    """

    takes: str
    example: str
    summary: str


def help_text(command: str, words: Mapping[str, Word]) -> str:
    """All that can be typed, a line each; the word "" is the magic alone, and N a number."""
    rows = [
        (
            f"{'' if name == 'N' else name} {word.takes}".strip() or ("N" if name == "N" else ""),
            word,
        )
        for name, word in words.items()
    ]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{command} {left:<{width}}  {word.summary}" for left, word in rows)


def read(command: str, words: Mapping[str, Word], line: str) -> tuple[str, str]:
    """The word that a line begins with, and what stands after it.

    Raises
    ------
    UsageError
        There is no such word, or not what it takes.
    """
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name not in words:
        near = nearest(name, [each for each in words if each])
        first = next(iter(word.example for each, word in words.items() if each))
        raise UsageError(
            f"{command}: there is no {name!r}"
            + (f"; did you mean {near}?" if near else ".")
            + f" Type {command} {words[near].example if near else first}, or {command} --help"
        )
    word = words[name]
    needs = word.takes and not word.takes.startswith("[")
    if (needs and not rest) or (rest and not word.takes):
        what = f"takes {word.takes}" if word.takes else "takes nothing after it"
        raise UsageError(f"{command} {name} {what}: type {command} {word.example}")
    return name, rest
