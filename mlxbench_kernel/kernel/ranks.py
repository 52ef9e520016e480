"""Sets of ranks as people write them: ``0,2-3``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel.output.ranks import format_ranks

_PART = re.compile(r"([0-9]+)(?:-([0-9]+))?")


@dataclass(frozen=True)
class RankSelection:
    """Ranks that the user asked for, not yet compared with how many there are.

    Attributes
    ----------
    text
        As typed.
    spans
        First and last rank of each part, both included.
    """

    text: str
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> RankSelection:
        """Read ranks such as ``"0,2-3"``.

        Raises
        ------
        ValueError
            The text is not written like that; says why.
        """
        spans = []
        for part in text.split(","):
            match = _PART.fullmatch(part.strip())
            if match is None:
                raise ValueError(f"takes ranks such as 0,2-3, not {text!r}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"takes a range from low to high, not {part.strip()!r}")
            spans.append((first, last))
        return cls(text, tuple(spans))

    def among(self, size: int) -> list[int]:
        """The ranks in ascending order, each once.

        Parameters
        ----------
        size
            Number of ranks that run.

        Raises
        ------
        UsageError
            A rank is out of range.
        """
        highest = max(last for _, last in self.spans)
        if highest >= size:
            there = f"ranks 0-{size - 1} are" if size > 1 else "only rank 0 is"
            raise UsageError(
                f"--ranks {self.text}: there is no rank {highest}, {there} running; "
                f"type --ranks {'0' if size == 1 else f'0-{size - 1}'}"
            )
        return sorted({rank for first, last in self.spans for rank in range(first, last + 1)})


def ranks_text(ranks: Iterable[int]) -> str:
    """Ranks for a message: ``"rank 0"``, ``"ranks 0-1"``, ``"ranks 0,2-3"``."""
    text = format_ranks(ranks)
    return f"rank {text}" if text.isdigit() else f"ranks {text}"
