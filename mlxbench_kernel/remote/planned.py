"""What is looked at and planned on the ranks' hosts before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.asking import ask_ranks
from mlxbench_kernel.remote.on_model import on_model
from mlxbench_kernel.units import format_bytes

if TYPE_CHECKING:
    from mlxbench_kernel.remote.language_model import ModelOnRanks

Progress = Callable[[float, str], None]


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


def find_files(
    lm: ModelOnRanks,
    revision: str | None,
    adapter: str | None,
    draft: str | None,
    progress: Progress = lambda done, text: None,
) -> dict[int, str]:
    """Where a model's files are, by rank; one of the hub is downloaded first.

    Parameters
    ----------
    lm
        Its ``architecture`` is told.
    revision, adapter, draft
        As of `ModelOnRanks.load`.
    progress
        Told how far a download is.

    Raises
    ------
    UsageError
        They are not there or not whole, or not the same on all hosts.
    """
    ranks = lm.ranks
    come: dict[int, int] = {}

    def heard(rank: int, told: dict[str, Any]) -> None:
        come[rank] = told["come"]
        of = f" of {format_bytes(told['of'])}" if told["of"] else ""
        progress(0.0, f"downloading: {format_bytes(min(come.values()))}{of}")

    found = ask_ranks(
        lm.cluster, ranks, lm.tell, None, "find", lm.path, revision, adapter, draft,
        of=on_model, heard=heard,
    )  # fmt: skip
    lm.architecture = found[0]["architecture"]
    hosts = {each.rank: each.host for each in lm.cluster.info.ranks}
    for rank in ranks[1:]:
        ours, its = found[0]["digests"], found[rank]["digests"]
        other = sorted(name for name in ours.keys() | its.keys() if ours.get(name) != its.get(name))
        if other:
            beside = os.path.dirname(other[0])  # the folder of what goes with the model
            raise UsageError(
                f"{other[0]} differs between {hosts[0]} (rank 0) and {hosts[rank]} (rank "
                f"{rank}): copy {beside or found[0]['folder']} of {hosts[0]} there"
            )
    return {rank: each["folder"] for rank, each in found.items()}


def measured_link(lm: ModelOnRanks, folders: Mapping[int, str]) -> dict[str, Any]:
    """What "auto" goes by, see `memory.fit.Link`."""
    arguments = {rank: (folders[rank],) for rank in lm.ranks}
    found = lm.ask_each("link", arguments)
    return {
        "alone": tuple(found[rank]["alone"] for rank in lm.ranks),
        "together": min(each["together"] for each in found.values()),
        "collective": max(each["collective"] for each in found.values()),
        "sends": not against_link("pipeline", lm.cluster.info.backend, lm.size),
    }
