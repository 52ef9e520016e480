"""`Plan`: what was planned on the ranks' hosts before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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


def with_room(
    hosts: Mapping[str, tuple[int, int]], held: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """What is free on hosts once there is room that ranks make, as `FitPlan` takes it.

    Parameters
    ----------
    hosts
        By name bytes, and how many ranks have them, in the order of the ranks.
    held
        Bytes that each rank gives back, by rank.
    """
    left = iter(held)
    return {name: (free + sum(islice(left, ranks)), ranks) for name, (free, ranks) in hosts.items()}


def against_link(shard: str, backend: str, size: int) -> str:
    """Why ranks cannot share a model so over their links; "" where they can."""
    if shard == "pipeline" and backend == "nccl" and size > 1:
        return (
            "as 'pipeline' ranks hand on to one another, and MLX has no send and receive over "
            "NCCL: type shard='tensor' or 'data', or start the ranks with --backend ring"
        )
    return ""
