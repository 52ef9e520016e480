"""The loss that models are tuned by, and validated with: mlx-lm's own, weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn import losses
from mlx.nn.layers.base import Module

from mlxbench_kernel.models.batching import parts_of
from mlxbench_kernel.models.datasets import Examples


def summed(model: Any, tokens: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
    """The sum of the losses of all tokens that count, and their number.

    As ``mlx_lm.tuner.trainer.default_loss`` (mlx-lm 0.32.2), before it divides one by the other.

    Parameters
    ----------
    model
        Of mlx-lm.
    tokens, lengths
        See `batching.padded`.
    """
    targets = tokens[:, 1:]
    logits = model(tokens[:, :-1])
    steps = mx.arange(1, targets.shape[1] + 1)
    mask = mx.logical_and(steps >= lengths[:, 0:1], steps <= lengths[:, 1:])
    entropy = losses.cross_entropy(logits, targets) * mask
    return entropy.astype(mx.float32).sum(), mask.sum()


def loss_of(model: Any, tokens: mx.array, lengths: mx.array, share: mx.array) -> mx.array:
    """The loss of a step: of its mean over ranks, the mean over all tokens of the whole batch.

    A model is in training mode here, where dropout works, and nowhere else.

    Parameters
    ----------
    share
        By what the sum is divided, see `batching.Batch`.
    """
    with training(model):
        return summed(model, tokens, lengths)[0] / share


@contextmanager
def training(model: Module) -> Iterator[None]:
    """Have a model in training mode within the block."""
    before = model.training
    model.train()
    try:
        yield
    finally:
        model.train(before)


@dataclass(frozen=True)
class Validated:
    """How well a model predicts what it was not trained on.

    Attributes
    ----------
    loss
        Mean over all tokens that count, of all ranks.
    tokens
        How many these are.
    examples
        Name of the set, ``valid`` or ``test``.
    step
        After how many steps.
    """

    loss: float
    tokens: int
    examples: str = "valid"
    step: int = 0

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(min(self.loss, 700.0))

    def __repr__(self) -> str:
        return (
            f"{self.examples}, step {self.step}: loss {self.loss:.4g}, perplexity "
            f"{self.perplexity:.4g}, over {self.tokens:,} tokens"
        )


def validated(
    model: Any,
    examples: Examples,
    batch_size: int,
    most: int,
    max_seq_length: int,
    seed: int,
    group: mx.distributed.Group,
) -> tuple[float, int]:
    """The mean loss over examples, and of how many tokens; on all ranks alike, each with its part.

    Parameters
    ----------
    model
        In the mode that it is in.
    others
        See `batching.parts_of`.
    """
    total, count = mx.array(0.0), mx.array(0)
    for tokens, lengths in parts_of(examples, batch_size, most, max_seq_length, seed, group):
        loss, some = summed(model, tokens, lengths)
        total, count = total + loss, count + some
        mx.eval(total, count)
    if group.size() > 1:
        total = mx.distributed.all_sum(total, group=group)
        count = mx.distributed.all_sum(count, group=group)
    mx.eval(total, count)
    tokens_of_all: Any = count.item()
    loss_of_all: Any = total.item()
    return float(loss_of_all) / max(int(tokens_of_all), 1), int(tokens_of_all)
