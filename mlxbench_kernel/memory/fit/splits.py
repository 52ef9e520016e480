"""Ways to put a model on several ranks: what each rank holds, and which layers go where."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.collectives import Rank
from mlxbench_kernel.memory.fit.need import Unknown, thinking
from mlxbench_kernel.memory.fit.stand_ins import bytes_of, copied

WAYS = ("tensor", "pipeline", "data")
HEADS = {"num_attention_heads": "heads", "num_key_value_heads": "KV heads"}
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")


def ways(model: Module | None, mode: str, ranks: int) -> dict[str, str]:
    """Why each way does not go with a model; "" where it does.

    Parameters
    ----------
    model
        None where mlx-lm cannot build it.
    mode
        "infer", "lora" or "train".
    ranks
        Their number.
    """
    release = f"mlx-lm {version('mlx-lm')}"
    if model is None:
        nothing = "needs a model that mlx-lm can build"
        return {"tensor": nothing, "pipeline": nothing, "data": ""}
    tensor = pipeline = ""
    if not hasattr(model, "shard"):
        tensor = f"{release} has no model.shard for it"
    elif mode == "lora":
        tensor = f"{release} puts no LoRA on sharded layers"
    else:
        tensor = _against_heads(model, ranks)
    if not hasattr(getattr(model, "model", None), "pipeline"):
        pipeline = f"{release} has no pipeline for it"
    elif mode != "infer":
        pipeline = "no gradients go through MLX's send and recv"
    elif (layers := len(_inner(model).layers)) < ranks:
        pipeline = f"it has {layers} layers for {ranks} ranks"
    return {"tensor": tensor, "pipeline": pipeline, "data": ""}


def _inner(model: Module) -> Any:
    return model.model


def _against_heads(model: Module, ranks: int) -> str:
    """Why the heads of a model cannot be shared out among ranks; "" where they can."""
    args: Any = getattr(model, "args", None)
    text = getattr(args, "text_config", None)
    config = text if isinstance(text, dict) else {}
    found = {name: config.get(name, getattr(args, name, None)) for name in HEADS}
    counts = {name: count for name, count in found.items() if isinstance(count, int) and count}
    wrong = [f"{count} {HEADS[name]}" for name, count in counts.items() if count % ranks]
    if not wrong:
        return ""
    common = math.gcd(*counts.values())
    fitting = [str(number) for number in range(2, common + 1) if common % number == 0]
    which = f"{', '.join(fitting)} ranks do" if fitting else "no number of ranks does"
    return f"{ranks} ranks do not divide its {' and '.join(wrong)} ({which})"


def sharded(model: Module, rank: Rank) -> Module:
    """A copy of what a rank holds after ``model.shard(group)``.

    Raises
    ------
    UsageError
        It does not go into that many parts.
    """
    model = copied(model)
    shard: Any = model.shard
    try:
        with thinking(rank):
            shard(rank)
    except Unknown as error:
        raise UsageError(
            f"FitPlan: the model cannot be split among {rank.size()} ranks as 'tensor' ({error}): "
            "give a number that divides its layers, or another shard"
        ) from None
    return copied(model)


def staged(model: Module, rank: Rank, split: Sequence[int]) -> Module:
    """A copy of what a rank of a pipeline holds.

    Parameters
    ----------
    model, rank
        Rank 0 has the last layers, as in mlx-lm (``PipelineMixin``).
    split
        Layers of each rank.

    Raises
    ------
    UsageError
        mlx-lm cannot split it so.
    """
    model = copied(model)
    inner: Any = model.model
    try:
        with thinking(rank):
            if takes_split(model):
                inner.pipeline(rank, split=list(split))
            else:
                inner.pipeline(rank)
    except Unknown as error:
        raise UsageError(f"FitPlan: the model cannot be split as 'pipeline' ({error})") from None
    return copied(model)


def takes_split(model: Module) -> bool:
    """Whether the model's pipeline can have an uneven number of layers on its ranks."""
    inner: Any = model.model
    return "split" in inspect.signature(inner.pipeline).parameters


def even(layers: int, ranks: int) -> tuple[int, ...]:
    """Layers of each rank as mlx-lm shares them out by itself (``PipelineMixin.pipeline``)."""
    base, extra = divmod(layers, ranks)
    return tuple(base + (rank < extra) for rank in range(ranks))


@dataclass(frozen=True)
class Weights:
    """Bytes of a model, layer by layer.

    Attributes
    ----------
    layers
        Of each layer, with its part of the caches.
    rest
        What every stage of a pipeline has: embeddings, the last norm, the head.
    """

    layers: tuple[int, ...]
    rest: int


def weigh(model: Module, cache: int) -> Weights:
    """Bytes of each layer; `cache` bytes are shared out evenly among them."""
    from mlx.utils import tree_flatten

    inner: Any = model.model
    flat: Any = tree_flatten(model.parameters())
    count = len(inner.layers)
    layers = [cache // count] * count
    counted: set[int] = set()
    for path, array in flat:
        if not isinstance(array, mx.array) or id(array) in counted:
            continue
        counted.add(id(array))
        if (match := _LAYER.search(path)) and int(match[1]) < count:
            layers[int(match[1])] += array.nbytes
    rest = bytes_of(model) - (sum(layers) - cache // count * count)
    return Weights(tuple(layers), rest)


def best(weights: Weights, room: Sequence[int]) -> tuple[int, ...]:
    """Layers of each rank, at least one, so that the fullest is as little full as can be.

    Parameters
    ----------
    weights
        From `weigh`.
    room
        Bytes that each rank may use for layers; may be negative.

    Returns
    -------
    tuple of int
        By rank; rank 0 has the last layers.
    """
    sizes = weights.layers
    count, ranks = len(sizes), len(room)
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    # fullness[n]: the best for the first n layers on the ranks so far, from the last rank on
    infinite = float("inf")
    fullness = [0.0] + [infinite] * count
    cuts: list[list[int]] = []
    for rank in reversed(range(ranks)):
        after, cut = [infinite] * (count + 1), [0] * (count + 1)
        for end in range(1, count + 1):
            for begin in range(end):
                full = max(fullness[begin], _full(sums[end] - sums[begin], room[rank]))
                if full < after[end]:
                    after[end], cut[end] = full, begin
        fullness = after
        cuts.append(cut)
    split, end = [], count
    for cut in reversed(cuts):
        split.append(end - cut[end])
        end = cut[end]
    return tuple(split)


def _full(size: int, room: int) -> float:
    """How full a rank is; beyond 1 by what is missing, so that this is comparable among ranks."""
    return size / room if size <= room else 2.0 + (size - max(room, 0)) / 1e12


def names_of(split: Sequence[int]) -> list[str]:
    """The layers of each rank, as ``16–31``."""
    total = sum(split)
    found = []
    for rank, count in enumerate(split):
        begin = sum(split[rank + 1 :])
        found.append(f"{begin}–{begin + count - 1}" if total else "")
    return found
