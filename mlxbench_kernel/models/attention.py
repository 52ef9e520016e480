"""Which positions a layer attends to: the weights of all its heads, from the ranks that hold them.

mlx-lm's models compute attention with one fused operation, which does not give its weights. They
are computed again from what goes into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.called import Attended, attention_in
from mlxbench_kernel.models.layers import Layers, in_pipeline, noted, texts_of
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt, encode
from mlxbench_kernel.training.exchange import to_numpy
from mlxbench_kernel.units import format_bytes

MOST_BYTES = 2**30  # of the weights that are asked for at once


@dataclass(frozen=True)
class Attention:
    """The weights of a layer's attention.

    Attributes
    ----------
    layer : int
        Its number.
    heads : tuple of int
        The numbers of the heads.
    texts : list of str
        The tokens.
    values : float32 [heads, L, S]
        How much of a position (the last axis) goes into the result of another; 1 in all, less
        what goes to an attention sink. S is L, but for architectures with more keys than tokens.
    """

    layer: int
    heads: tuple[int, ...]
    texts: list[str]
    values: NDArray[np.float32]


def attention(
    part: Part, prompt: Prompt, layer: int, heads: Sequence[int] | None = None
) -> Attention | None:
    """The attention of a layer over a text; on all ranks of a split model alike.

    Parameters
    ----------
    part
        Of the model, which is as it was afterwards.
    prompt
        As for `prompts.encode`.
    layer
        Its number; negative ones count from the end.
    heads
        Which ones; None for all of them, of all ranks.

    Returns
    -------
    Attention or None
        None on a rank of a pipeline that does not hold the layer.

    Raises
    ------
    UsageError
        The text, the layer or a head cannot be; the layer has no attention of the usual kind; or
        it would be too much.
    """
    tokens = encode(part, prompt)
    layers = Layers(part)
    number = layers.number(layer)
    module = layers.held(number)
    found = noted(part, tokens, None if module is None else attention_in(module))
    error: UsageError | None = None
    chosen: tuple[int, ...] = ()
    try:
        if module is not None:
            chosen = _chosen(part, found, number, heads)
    except UsageError as met:
        error = met
    layers.agree(error)
    if module is None:
        return None
    values = _of_all_ranks(part, found[0], chosen)
    return Attention(number, chosen, texts_of(part.tokenizer, tokens), values)


def weights(asked: Attended) -> mx.array:
    """The weights of an attention, in float32 and lazy: [heads, L, S].

    As ``mx.fast.scaled_dot_product_attention`` documents them; "causal" is aligned at the end.

    Parameters
    ----------
    asked
        Of a batch of one.
    """
    queries, keys = (each.astype(mx.float32) for each in (asked.queries, asked.keys))
    batch, heads, length, width = queries.shape
    shared, positions = keys.shape[1], keys.shape[2]
    grouped = queries.reshape(batch, shared, heads // shared, length, width) * asked.scale
    scores = grouped @ keys[:, :, None].swapaxes(-1, -2)
    scores = scores.reshape(batch, heads, length, positions)
    mask = asked.mask
    if isinstance(mask, str):
        rows = mx.arange(positions - length, positions)
        mask = rows[:, None] >= mx.arange(positions)[None]
    if mask is not None and mask.dtype == mx.bool_:
        scores = mx.where(mask, scores, mx.array(-mx.inf))
    elif mask is not None:
        scores = scores + mask.astype(mx.float32)
    if asked.sinks is None:
        return mx.softmax(scores, axis=-1)[0]
    sinks = asked.sinks.astype(mx.float32).reshape(1, heads, 1, 1)
    sinks = mx.broadcast_to(sinks, (batch, heads, length, 1))
    return mx.softmax(mx.concatenate([scores, sinks], axis=-1), axis=-1)[0, ..., :-1]


def _chosen(
    part: Part, found: list[Attended], number: int, heads: Sequence[int] | None
) -> tuple[int, ...]:
    """The heads that were asked for.

    Raises
    ------
    UsageError
        There are none, or some are not there, or they are too many.
    """
    if not found:
        raise UsageError(
            f"layer {number} of {part.config.get('model_type')} computes no attention with "
            "mx.fast.scaled_dot_product_attention: try another layer, or lm.activations"
        )
    first = found[0]
    count = first.queries.shape[1] * (part.size if part.is_split and not in_pipeline(part) else 1)
    chosen = tuple(range(count)) if heads is None else tuple(heads)
    for head in chosen:
        if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < count:
            raise UsageError(
                f"heads={list(chosen)}: layer {number} has {count} heads: type some of 0 to "
                f"{count - 1}"
            )
    if not chosen:
        raise UsageError("heads=[]: type some, as heads=[0, 1], or leave it out for all")
    each = 4 * first.queries.shape[2] * first.keys.shape[2]
    if each * len(chosen) > MOST_BYTES:
        raise UsageError(
            f"the attention of {len(chosen)} heads over {first.queries.shape[2]:,} tokens takes "
            f"{format_bytes(each * len(chosen))}: type fewer, as heads=[0, 1], or a shorter text"
        )
    return chosen


def _of_all_ranks(part: Part, asked: Attended, chosen: tuple[int, ...]) -> NDArray[np.float32]:
    """The chosen heads; in tensor parallel each rank has some, one after the other."""
    own = weights(asked)
    if not part.is_split or in_pipeline(part):
        return np.array(own[mx.array(chosen)])
    first = own.shape[0] * part.rank
    nothing = mx.zeros(own.shape[1:])
    here = range(first, first + own.shape[0])
    rows = [own[head - first] if head in here else nothing for head in chosen]
    return to_numpy(mx.distributed.all_sum(mx.stack(rows), group=part.group))
