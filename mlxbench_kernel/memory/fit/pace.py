"""How long a token takes in each way to share a model out: an estimate from two measurements.

A generated token takes the time in which the weights are read that it needs, and the time of the
collectives on its way, one after another: what a kernel computes beside is little with one
sequence. On tensor-parallel ranks each reads its part of every layer; in a pipeline the ranks read
one after another what all of them hold; a replica reads everything and waits for nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.quantized import QuantizedEmbedding

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.collectives import Rank
from mlxbench_kernel.memory.fit.need import thinking
from mlxbench_kernel.memory.fit.stand_ins import bytes_of


@dataclass(frozen=True)
class Link:
    """What reading weights and a collective take on some ranks; `LanguageModel.load` measures it.

    Attributes
    ----------
    alone
        By rank, bytes of weights that it gets through in a second, one token at a time, while the
        others wait.
    together
        The same of the slowest rank while all of them read.
    collective
        Seconds of a sum over all ranks of as many elements as a hidden state has, among others
        of its like in one graph.
    sends
        Whether ranks can send to one another, as those of a pipeline do.

    Raises
    ------
    UsageError
        One of them is no positive number.
    """

    alone: tuple[float, ...]
    together: float
    collective: float
    sends: bool = True

    def __post_init__(self) -> None:
        for value in (*self.alone, self.together, self.collective):
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise UsageError(f"{self}: type numbers above 0 in place of {value!r}")


def token_seconds(model: Module, part: Module, way: str, ranks: int, link: Link) -> float:
    """Seconds from one generated token to the next.

    Parameters
    ----------
    model
        With stand-ins for its arrays.
    part
        What a rank holds of it, where it is shared out as "tensor".
    way, ranks
        How it is shared out, and among how many.
    link
        What was measured.

    Raises
    ------
    Unknown
        The part cannot be called as language models are.
    """
    if way == "data":
        return read_bytes(model) / link.alone[0]
    if way == "pipeline":  # each but the last hands on, and the last tells all
        slowness = sum(1 / each for each in link.alone) / len(link.alone)
        return read_bytes(model) * slowness + ranks * link.collective
    return read_bytes(part) / link.together + collectives(part, ranks) * link.collective


def read_bytes(model: Module) -> int:
    """Bytes of the weights that a token needs: of experts only those that are asked."""
    total = bytes_of(model)
    args: Any = getattr(model, "args", None)
    asked = getattr(args, "num_experts_per_tok", None)
    looks_up_only = getattr(args, "tie_word_embeddings", True) is False
    for module in model.modules():
        experts = getattr(module, "num_experts", None)
        if type(module).__name__.endswith("SwitchLinear") and asked and experts:
            total -= bytes_of(module) * (experts - min(asked, experts)) // experts
        elif looks_up_only and isinstance(module, (Embedding, QuantizedEmbedding)):
            total -= bytes_of(module)
    return total


def collectives(part: Module, ranks: int) -> int:
    """How many collectives are on the way of a token through a rank's part of a model.

    Raises
    ------
    Unknown
        It cannot be called as language models are.
    """
    model: Any = part
    seen: list[str] = []
    with thinking(Rank(0, ranks), seen):
        model(mx.zeros((1, 1), mx.int32))
    return len(seen)
