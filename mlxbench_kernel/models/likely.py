"""The likeliest next tokens at each position of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.layers import texts_of
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt, encode

PIECE = 256  # positions whose probabilities are there at a time


@dataclass(frozen=True)
class Likely:
    """The likeliest next tokens after each token of a text.

    Attributes
    ----------
    first : int
        Position of the first row.
    tokens : int32 [n]
        The token at each position.
    texts : list of str
        The same as text.
    ids : int32 [n, k]
        The likeliest ones to follow it, the likeliest first.
    choices : list of list of str
        The same as text.
    probabilities : float32 [n, k]
        Theirs.
    actual : list of str
        What follows in the text; "" after the last token.
    places : int32 [n]
        The place of that among all tokens of the vocabulary by probability, 1 for the likeliest;
        0 after the last token.
    chances : float32 [n]
        Its probability; NaN after the last token.
    """

    first: int
    tokens: NDArray[np.int32]
    texts: list[str]
    ids: NDArray[np.int32]
    choices: list[list[str]]
    probabilities: NDArray[np.float32]
    actual: list[str]
    places: NDArray[np.int32]
    chances: NDArray[np.float32]


def likely(part: Part, prompt: Prompt, k: int = 10, first: int = 0) -> Likely:
    """The likeliest next tokens after each token of a text; on all ranks of a split model alike.

    Parameters
    ----------
    part
        Of the model; its caches are left alone.
    prompt
        As for `prompts.encode`.
    k
        How many.
    first
        Position from which on they are wanted.

    Raises
    ------
    UsageError
        The text or `k` cannot be.
    """
    from mlx_lm.models.cache import make_prompt_cache

    tokens = encode(part, prompt)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UsageError(f"k={k!r}: type a number, 1 or more")
    model: Any = part.model
    caches = make_prompt_cache(model)
    rows: list[tuple[mx.array, ...]] = []
    for begin in range(0, len(tokens), PIECE):
        here = tokens[begin : begin + PIECE]
        logits = model(mx.array([here]), cache=caches)[0]
        if k > logits.shape[-1]:
            raise UsageError(f"k={k}: the vocabulary has {logits.shape[-1]:,} tokens")
        follow = [*tokens[begin + 1 : begin + 1 + len(here)], 0][: len(here)]
        found = _rows(logits.astype(mx.float32), mx.array(follow), k)
        mx.eval(found)
        rows.append(found)
    columns = [np.array(mx.concatenate(list(each)))[first:] for each in zip(*rows, strict=True)]
    ids, probabilities, places, chances = columns
    places[-1], chances[-1] = 0, np.nan
    texts = texts_of(part.tokenizer, tokens)
    named = texts_of(part.tokenizer, ids.ravel().tolist())
    return Likely(
        first,
        np.array(tokens[first:], np.int32),
        texts[first:],
        ids.astype(np.int32),
        [named[row * ids.shape[1] : (row + 1) * ids.shape[1]] for row in range(len(ids))],
        probabilities,
        [*texts[first + 1 :], ""],
        places.astype(np.int32),
        chances,
    )


def _rows(logits: mx.array, follow: mx.array, k: int) -> tuple[mx.array, ...]:
    """Of each position: the likeliest, their probabilities, and place and chance of what follows.

    Of equally likely ones that with the lower number counts as likelier, as for ``mx.argmax``.
    """
    near = mx.sort(mx.argpartition(-logits, k - 1, axis=-1)[:, :k], axis=-1)
    best = mx.argsort(-mx.take_along_axis(logits, near, axis=-1), axis=-1)
    order = mx.take_along_axis(near, best, axis=-1)
    chances = mx.softmax(logits, axis=-1)
    own = mx.take_along_axis(logits, follow[:, None], axis=-1)
    before = mx.arange(logits.shape[-1])[None] < follow[:, None]
    likelier = (logits > own) | ((logits == own) & before)
    return (
        order,
        mx.take_along_axis(chances, order, axis=-1),
        likelier.sum(axis=-1) + 1,
        mx.take_along_axis(chances, follow[:, None], axis=-1)[:, 0],
    )
