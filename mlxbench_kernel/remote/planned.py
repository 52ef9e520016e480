"""`Plan`: what was planned on the ranks' hosts before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What `FitPlan` found on the ranks' hosts before anything was loaded.

    Attributes
    ----------
    fits : bool
        Whether every host has room.
    shard, why : str
        How the model is shared, and of "auto" why so.
    split : list of int
        Layers of each rank of a pipeline.
    rows : list of dict
        By rank, see `memory.fit.Row`; bytes.
    text, markdown : str
        All of it for a person.
    """

    fits: bool
    shard: str
    why: str
    split: list[int]
    rows: list[dict[str, Any]]
    text: str
    markdown: str

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.markdown
