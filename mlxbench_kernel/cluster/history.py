"""What cells put out before this notebook came, as the ranks have kept it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxbench_kernel.cluster.client import BenchClient

ANSWER_SECONDS = 5.0


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


def ask(
    client: BenchClient, ranks: Sequence[int], cells: int | None = None
) -> dict[int, list[PastCell]]:
    """The last cells of ranks, oldest first; ranks that do not answer are left out.

    Parameters
    ----------
    client
        Client of the cluster.
    ranks
        Whom to ask.
    cells
        How many; all that are kept by default.
    """
    answers = client.call("history", ranks, ANSWER_SECONDS, cells=cells)
    return {rank: [PastCell.read(cell) for cell in kept] for rank, kept in answers.items()}


def ask_last_cell(client: BenchClient, ranks: Sequence[int]) -> dict[int, PastCell]:
    """See `Cluster.last_cell`."""
    found = {rank: kept[0] for rank, kept in ask(client, ranks, cells=1).items() if kept}
    sent = max((cell.sent for cell in found.values()), default=0.0)
    return {rank: cell for rank, cell in found.items() if cell.sent == sent}
