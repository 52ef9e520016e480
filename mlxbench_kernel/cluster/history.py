"""What cells put out before this notebook came, as the ranks have kept it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PastCell:
    """A cell on one rank, as `mlxbench_kernel.rank.history` keeps it.

    Attributes
    ----------
    code
        Its source.
    sent
        When a notebook sent it (Unix time there); the same on all its ranks.
    running
        Whether it has not ended yet.
    messages
        Kind and content of what it put out, oldest first (Jupyter messaging 5.4); text of one
        stream in a row is one message, and ``"page"`` is what ``?`` would show.
    dropped
        Characters before them that were not kept.
    """

    code: str
    sent: float
    running: bool
    messages: tuple[tuple[str, dict[str, Any]], ...]
    dropped: int

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> PastCell:
        """From the answer of a rank to the call ``history``."""
        messages = tuple((kind, content) for kind, content in answer["messages"])
        return cls(**{**answer, "messages": messages})


def last_cell(history: Mapping[int, Sequence[PastCell]]) -> dict[int, PastCell]:
    """The last cell that any rank ran, by the ranks it ran on; nothing where there was none."""
    sent = max((cells[-1].sent for cells in history.values() if cells), default=0.0)
    return {
        rank: cell for rank, cells in history.items() for cell in cells[-1:] if cell.sent == sent
    }
