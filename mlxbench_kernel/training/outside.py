"""Arrays that a step changes although they are not in its state: an average of the weights, say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.frozen import Parts

Held = dict[str, tuple[Any, Parts]]  # by name: what it is, and what that held


def held(function: Callable[..., Any]) -> Held:
    """What a function can reach by names, and functions that it calls: arrays, and what holds them.

    Without the native module, which tells arrays from one another, that is nothing.
    """
    from mlxbench_kernel.graph.reaching import reached  # with all of graphs: not at start-up

    if native.load() is None:
        return {}
    return {
        name: (value, frozen.freeze([frozen.containers(value)], complete=False) or [])
        for name, value in reached(function).items()
        if isinstance(value, (mx.array, Module, optim.Optimizer, dict, list))
    }


def changed(before: Held, after: Held, state: Parts) -> list[str]:
    """The names under which arrays were replaced; what is new is no change of something old.

    Parameters
    ----------
    before, after
        From `held`.
    state
        The state, in which anything may change.
    """
    own = {id(original) for original, _ in state}
    found = []
    for name in before.keys() & after.keys():
        old, new = (_arrays(*each[name], own) for each in (before, after))
        if any(new[place] != number for place, number in old.items() if place in new):
            found.append(name)
    return sorted(found)


def _arrays(value: Any, parts: Parts, own: set[int]) -> dict[Any, int]:
    """By their place the numbers of arrays, which no others have while these are kept."""
    module: Any = native.load()
    if isinstance(value, mx.array):
        return {None: module.array_id(value)}
    return {
        (id(original), place): module.array_id(each)
        for original, copy in parts
        if id(original) not in own
        for place, each in (copy.items() if isinstance(copy, dict) else enumerate(copy))
        if isinstance(each, mx.array)
    }
