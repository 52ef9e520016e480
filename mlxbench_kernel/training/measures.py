"""What is measured of every parameter, lazily: norms, ratios, counts of what is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

Arrays = Mapping[str, mx.array]  # by the path of the parameter


def of_gradients(own: Arrays, averaged: Arrays, names: list[str]) -> dict[str, mx.array]:
    """Measures of gradients.

    Parameters
    ----------
    own, averaged
        This rank's, and their average over the ranks; the same object where it is alone.
    names
        Of the parameters, in the order in which they are measured.

    Returns
    -------
    dict of str to mlx.core.array
        As `Outcome.measures`.
    """
    squares = mx.stack([_square(averaged[name]) for name in names])
    lone = squares if own is averaged else mx.stack([_square(own[name]) for name in names])
    bad = mx.stack([_nonfinite(averaged[name]) for name in names])
    return {
        "grad_norm": mx.sqrt(squares.sum()),
        "grad_norm_rank": mx.sqrt(lone.sum()),
        "nonfinite": bad.sum(),
        "parameters.grad_norm": mx.sqrt(squares),
        "parameters.grad_norm_rank": mx.sqrt(lone),
        "parameters.nonfinite": bad,
    }


def of_update(before: Arrays, after: Arrays) -> dict[str, mx.array]:
    """How far parameters went, against their own size; of no size at all, against 1e-15."""
    update = mx.stack([_square(after[name] - array) for name, array in before.items()])
    weights = mx.stack([_square(array) for array in before.values()])
    tiny = 1e-30
    return {
        "update_ratio": mx.sqrt(update.sum() / mx.maximum(weights.sum(), tiny)),
        "parameters.update_ratio": mx.sqrt(update / mx.maximum(weights, tiny)),
    }


def flat(tree: Any) -> list[tuple[str, mx.array]]:
    """The arrays of a tree, with their paths."""
    pairs: Any = tree_flatten(tree)
    return [(name, array) for name, array in pairs if isinstance(array, mx.array)]


def _square(array: mx.array) -> mx.array:
    return array.astype(mx.float32).square().sum()


def _nonfinite(array: mx.array) -> mx.array:
    return (~mx.isfinite(array)).astype(mx.float32).sum()
