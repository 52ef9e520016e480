"""The ways in which ranks can share a model, and why one does not go."""

from __future__ import annotations

from typing import Any

from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.splits import WAYS, takes_split
from mlxbench_kernel.memory.fit.splits import ways as against


def check(model: Module, kind: str, shard: str, size: int) -> None:
    """Check that a model goes onto ranks that way.

    Parameters
    ----------
    model
        As mlx-lm builds it.
    kind
        What mlx-lm calls it.
    shard
        "tensor", "pipeline" or "data".
    size
        Number of ranks.

    Raises
    ------
    UsageError
        It does not; says what does.
    """
    if shard not in WAYS:
        raise UsageError(f"shard={shard!r} is not known: type {', '.join(map(repr, WAYS))}")
    reasons = against(model, "infer", size)
    if reason := reasons[shard]:
        possible = " or ".join(f"shard={way!r}" for way, wrong in reasons.items() if not wrong)
        raise UsageError(f"{kind} does not go as {shard!r}: {reason}; type {possible}")


def cut(model: Any, shard: str, group: Any, split: list[int] | None = None) -> None:
    """Have a model be this rank's part of it, as mlx-lm does that.

    Parameters
    ----------
    model
        With lazy parameters.
    shard, group
        How, and among whom.
    split
        Layers of each rank of a pipeline; rank 0 has the last ones. None for an even one.
    """
    if shard == "tensor":
        model.shard(group)
    elif shard == "pipeline" and split and takes_split(model):
        model.model.pipeline(group, split=list(split))
    elif shard == "pipeline":
        model.model.pipeline(group)
