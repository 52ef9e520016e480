"""Values of dicts and lists of arrays, kept by reference and put back in place.

MLX's arrays are immutable, so keeping one is keeping a reference; but ``a[i] = v`` gives the array
*object* another value, so what is kept are handles of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from mlxbench_kernel import native
from mlxbench_kernel.containers import refill

Parts = list[tuple[Any, Any]]  # (original, copy) of each dict and list
RANDOM: Any = mx.random.state  # one object for ever, but `mx.random` looks for it each time


def containers(tree: Any) -> Any:
    """The dicts and lists that hold what a module, an optimizer or a tree is."""
    if isinstance(tree, optim.MultiOptimizer):
        return [containers(each) for each in tree.optimizers]
    if isinstance(tree, optim.Optimizer):
        return vars(tree)  # its state, and whether that was initialised
    return tree


def freeze(tree: Any, complete: bool = True) -> Parts | None:
    """Keep what the dicts and lists of a tree hold now.

    Parameters
    ----------
    tree
        Nested dicts, lists and tuples, from `containers`.
    complete
        Whether all arrays must be.

    Returns
    -------
    list of (original, copy) or None
        In the order of a walk, the outermost first; None when an array must be complete and is not.
    """
    module = native.load()
    if module is not None:
        parts: Parts | None = module.freeze(tree, complete)
        return parts
    found: Parts = []
    _copy(tree, found)
    return found


def put_back(parts: Parts) -> None:
    """Give the original dicts and lists what they held, in place; `parts` can be used again."""
    module = native.load()
    for original, copy in parts if module is None else module.thaw(parts):
        refill(original, _renewed(copy))


def arrays(parts: Parts) -> Iterator[mx.array]:
    """The arrays that copies hold; those in dicts and lists inside have copies of their own."""
    for _, copy in parts:
        yield from _arrays_in(copy)


def is_same(one: Any, other: Any) -> bool:
    """Whether two frozen trees hold the same nodes of the graph, and equal numbers.

    Without the native module that is not known, and False.
    """
    module = native.load()
    return module is not None and bool(module.is_same(one, other))


def handle(value: Any) -> Any:
    """The same array as another object; anything else as it is."""
    module = native.load()
    if not isinstance(value, mx.array) or module is None:
        return value
    return module.handle(value)


def random_key() -> mx.array:
    """The state of ``mx.random``: uint32 of shape [2], lazy."""
    key: mx.array = RANDOM[0]
    return key


def seed(key: mx.array) -> None:
    """Set the state of ``mx.random`` to a key, uint32 of shape [2]."""
    high, low = (int(str(key[half].item())) for half in (0, 1))
    mx.random.seed(high << 32 | low)  # mlx/random.cpp: a key is its seed, in two halves


def _arrays_in(value: Any) -> Iterator[mx.array]:
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, mx.array):
            yield each
        elif isinstance(each, tuple):
            yield from _arrays_in(each)


def _renewed(value: Any) -> Any:
    """With new handles, so that those kept stay what they are."""
    if isinstance(value, dict):
        return {key: _leaf(each) for key, each in value.items()}
    return [_leaf(each) for each in value]


def _leaf(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_leaf(each) for each in value)
    return handle(value)


def _copy(value: Any, parts: Parts) -> Any:
    """What ``native.freeze`` does."""
    if isinstance(value, dict):
        copy: Any = {}
        parts.append((value, copy))
        copy.update({key: _copy(each, parts) for key, each in value.items()})
    elif isinstance(value, list):
        copy = []
        parts.append((value, copy))
        copy.extend(_copy(each, parts) for each in value)
    elif isinstance(value, tuple):
        return tuple(_copy(each, parts) for each in value)
    return value
