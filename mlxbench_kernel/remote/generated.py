"""A text that ranks generate: what there is of it, and its figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SHOWN = 60  # characters of a text, where it is named


@dataclass(frozen=True, repr=False)
class Generated:
    """A text that was generated.

    Attributes
    ----------
    text : str
        Without the prompt.
    tokens : list of int
        Generated, the one that ended it included; empty where it was broken off.
    finish : str
        "stop", "length" (of `max_tokens`), "context" (which is full) or "interrupted".
    figures : dict
        ``prompt_tokens``, ``reused`` (of these in a cache), ``tokens``, ``drafted`` (of these found
        by the draft model), ``first`` (seconds to the first token), ``prompt_rate`` and ``rate``
        (tokens per second).
    ranks : dict
        By rank ``kv_bytes``, ``active``, ``peak`` (bytes) and ``collectives`` (share of the time;
        NaN where it is not known, as of collectives on a GPU).
    prompt : list of int
        The tokens of the prompt; empty where it was broken off.
    reading : tuple of int
        Until the first token: how many tokens of the prompt are read, and how many there are to
        read; (0, 0) until the first of a long one are.
    """

    text: str
    tokens: list[int]
    finish: str
    figures: dict[str, Any]
    ranks: dict[int, dict[str, Any]]
    prompt: list[int] = field(default_factory=list)
    reading: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        """Short: a cell that ends with it has shown the text already."""
        first = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}…"
        return f"<{self.figures.get('tokens', 0)} tokens generated: {first!r}>"


class SoFar:
    """Puts together what ranks say of a generation.

    Parameters
    ----------
    heard
        Is told what there is, each time.

    Attributes
    ----------
    text : str
        So far.
    """

    def __init__(self, heard: Callable[[Generated], None]) -> None:
        self._heard = heard
        self.text = ""
        self._figures: dict[str, Any] = {}
        self._ranks: dict[int, dict[str, Any]] = {}
        self._reading = 0, 0

    def __call__(self, rank: int, told: dict[str, Any]) -> None:
        self.text += told.get("text", "")
        if told.get("piece"):
            self._figures = figures_of(told["piece"])
        if "figures" in told:
            self._ranks[rank] = {
                name: math.nan if value is None else value
                for name, value in told["figures"].items()
            }
        if "read" in told:
            self._reading = told["read"], told["all"]
        ranks = dict(self._ranks)
        self._heard(Generated(self.text, [], "", self._figures, ranks, reading=self._reading))


def figures_of(piece: Mapping[str, Any]) -> dict[str, Any]:
    """What `Generated.figures` has of a piece."""
    names = ("prompt_tokens", "reused", "tokens", "drafted", "first", "prompt_rate", "rate")
    return {name: piece[name] for name in names}
