"""Perplexity over a text, its windows shared out among ranks that have replicas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.part import Part

Progress = Callable[[int, int], None]  # windows that are done on this rank, and all of them


@dataclass(frozen=True, repr=False)
class Perplexity:
    """How well a model predicts a text.

    Attributes
    ----------
    value, error : float
        The perplexity, and its standard error.
    loss : float
        Mean of the cross-entropy of the predicted tokens (nats); `value` is its exponential.
    windows, length : int
        Pieces of the text, of so many tokens each.
    tokens : int
        That were predicted: all but the first of each window.
    """

    value: float
    error: float
    loss: float
    windows: int
    length: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"perplexity {self.value:.3f} ± {self.error:.3f} over {self.tokens:,} tokens in "
            f"{self.windows:,} windows of {self.length:,}"
        )

    __repr__ = __str__


def perplexity(
    part: Part,
    text: str,
    length: int = 512,
    batch_size: int = 8,
    progress: Progress = lambda done, total: None,
) -> Perplexity:
    """The perplexity of a text as ``mlx_lm.perplexity`` (0.32.2) computes it; on all ranks alike.

    The text is cut into windows, and what is left at its end is not looked at. Where each rank has
    a replica, each reads some of the windows; all have the result.

    Parameters
    ----------
    part
        Of the model.
    text
        Of at least one window.
    length
        Tokens of a window.
    batch_size
        Windows that are read at once.
    progress
        Called after each batch.

    Raises
    ------
    UsageError
        The text is shorter than a window, or a number cannot be.
    """
    data = _windows(part, text, length, batch_size)
    windows = data.shape[0]
    shares = part.size if part.shard == "data" else 1
    own = range(part.rank if shares > 1 else 0, -(-windows // batch_size), shares)
    model: Any = part.model
    found: list[mx.array] = []
    losses = mx.zeros((windows, length - 1))
    progress(0, len(own))
    for count, number in enumerate(own):
        batch = data[number * batch_size : (number + 1) * batch_size]
        logits = model(batch[:, :-1]).astype(mx.float32)
        loss = nn.losses.cross_entropy(logits, batch[:, 1:], reduction="none")
        mx.eval(loss)
        found.append(loss)
        progress(count + 1, len(own))
    for number, loss in zip(own, found, strict=True):
        losses[number * batch_size : number * batch_size + len(loss)] = loss
    if shares > 1:
        losses = mx.distributed.all_sum(losses, group=part.group)  # of the others they are zero
    losses = losses.flatten()
    mean = float(losses.mean())
    value = math.exp(mean) if mean < 700 else math.inf
    deviation = float(mx.sqrt(mx.var(losses, ddof=1)))
    error = value * deviation / math.sqrt(losses.size)  # by the delta method
    return Perplexity(value, error, mean, windows, length, losses.size)


def _windows(part: Part, text: str, length: int, batch_size: int) -> mx.array:
    """The tokens, a window in each row."""
    for name, value, least in (("length", length, 2), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name}={value!r}: type a number, {least} or more")
    if part.context is not None and length > part.context:
        raise UsageError(
            f"length={length} is beyond the model's context of {part.context:,} tokens: type less"
        )
    if not text:
        raise UsageError("the text is empty: give some")
    tokens = part.tokenizer.encode(text)
    whole = len(tokens) // length
    if not whole:
        raise UsageError(
            f"the text has {len(tokens):,} tokens, less than a window of {length:,}: give a "
            f"longer one, or type length={max(len(tokens), 2)}"
        )
    return mx.array(tokens[: whole * length]).reshape(whole, length)
