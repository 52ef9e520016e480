"""`Plan`: what was planned on the ranks' hosts before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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


def pools_of(
    hosts: Mapping[int, str], told: Mapping[int, Mapping[str, Any]]
) -> dict[str, tuple[int, int]]:
    """The memory that ranks draw from, as `FitPlan` takes hosts: bytes, and how many ranks.

    Parameters
    ----------
    hosts
        Names, by rank.
    told
        By rank ``pool`` ("" for the memory of its host, else what tells GPUs apart), ``free`` bytes
        there, and ``held`` by what makes room.
    """
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    for rank, each in sorted(told.items()):
        place = hosts[rank], each["pool"]
        free, held, ranks = found.get(place, (each["free"], 0, 0))
        found[place] = min(free, each["free"]), held + each["held"], ranks + 1
    pools = Counter(host for host, _ in found)
    seen: Counter[str] = Counter()
    named = {}
    for (host, _), (free, held, ranks) in found.items():
        name = host if pools[host] == 1 else f"{host}, GPU {seen[host]}"
        seen[host] += 1
        named[name] = free + held, ranks
    return named


def against_link(shard: str, backend: str, size: int) -> str:
    """Why ranks cannot share a model so over their links; "" where they can."""
    if shard == "pipeline" and backend == "nccl" and size > 1:
        return (
            "as 'pipeline' ranks hand on to one another, and MLX has no send and receive over "
            "NCCL: type shard='tensor' or 'data', or start the ranks with --backend ring"
        )
    return ""
