"""Copies of models whose arrays have shapes and dtypes, and no memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel import native

_Kind = TypeVar("_Kind")


def stand_in(array: mx.array) -> mx.array:
    """A lazy array of the same shape and dtype."""
    return mx.zeros(array.shape, array.dtype)


def copied(value: _Kind) -> _Kind:
    """A copy of a module, or of a tree, with stand-ins for its arrays.

    Modules, dicts, lists and tuples are copied, each once, so that what is shared stays shared;
    other objects are the same as in the original.
    """
    made: _Kind = _copied(value, {})
    return made


def _copied(value: Any, seen: dict[int, Any]) -> Any:
    if id(value) in seen:
        return seen[id(value)]
    made: Any
    if isinstance(value, mx.array):
        made = seen[id(value)] = stand_in(value)
    elif isinstance(value, Module):
        made = seen[id(value)] = type(value).__new__(type(value))
        for name, each in vars(value).items():
            # What it does not train is a set, which freezing changes in place.
            made.__dict__[name] = set(each) if isinstance(each, set) else _copied(each, seen)
        for name, each in value.items():
            dict.__setitem__(made, name, _copied(each, seen))
    elif type(value) is dict:
        made = seen[id(value)] = {}
        made.update((name, _copied(each, seen)) for name, each in value.items())
    elif type(value) is list:
        made = seen[id(value)] = []
        made.extend(_copied(each, seen) for each in value)
    elif type(value) is tuple:
        made = tuple(_copied(each, seen) for each in value)
    else:
        made = value
    return made


def arrays_of(value: Any) -> dict[int, mx.array]:
    """The arrays of a module, those outside its parameters too, or of a tree; by MLX's ids."""
    module = native.load()
    found: dict[int, mx.array] = {}
    for array in _arrays(value, set()):
        found.setdefault(id(array) if module is None else int(module.array_id(array)), array)
    return found


def bytes_of(value: Any) -> int:
    """Bytes of the arrays of a module or a tree, each counted once."""
    return sum(array.nbytes for array in arrays_of(value).values())


def _arrays(value: Any, seen: set[int]) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
        return
    if not isinstance(value, (Module, dict, list, tuple)) or id(value) in seen:
        return
    seen.add(id(value))
    for each in value.values() if isinstance(value, dict) else value:
        yield from _arrays(each, seen)
    if isinstance(value, Module):
        yield from _arrays(list(vars(value).values()), seen)
