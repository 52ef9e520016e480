"""Arrays in what users keep them in: modules, optimizers, dicts, lists, their own objects."""

from __future__ import annotations

import argparse
import sys
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel.holding import held_by

Named = tuple[str, mx.array]
_Kind = TypeVar("_Kind")

# What holds nothing else.
PLAIN = (str, bytes, int, float, complex, bool, type(None), types.ModuleType)
_LEAVES = (*PLAIN, type, types.FunctionType)
_KINDS = frozenset(PLAIN)


def all_plain(values: Collection[Any]) -> bool:
    """Whether none of these holds anything, as in a list of a million numbers."""
    return set(map(type, values)) <= _KINDS


def arrays_in(tree: Any) -> list[mx.array]:
    """The arrays in dicts, lists, tuples, modules and optimizers, each object once."""
    return [array for _, array in named_arrays("", tree)]


def named_arrays(name: str, tree: Any) -> Iterator[Named]:
    """Arrays with their paths, as ``batch[0]`` or ``layers.3.weight``.

    Parameters
    ----------
    name
        What the user calls the tree; of a module and an optimizer it is left out.
    tree
        Anything; what holds no arrays yields nothing.
    """
    yield from _named(name, tree, mx.array)


def named_modules(name: str, tree: Any) -> Iterator[tuple[str, Module]]:
    """Modules that are not in other ones, with their paths, as ``trainer.model`` or ``layers[0]``.

    Parameters
    ----------
    name, tree
        As for `named_arrays`.
    """
    yield from _named(name, tree, Module)


def _named(name: str, tree: Any, kind: type[_Kind]) -> Iterator[tuple[str, _Kind]]:
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [(name, tree)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, kind):
            yield path, value
        elif not isinstance(value, mx.array):
            waiting += reversed(list(_children(path, value)))


def _children(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, optim.MultiOptimizer):
        yield from (("", each) for each in value.optimizers)
    elif isinstance(value, optim.Optimizer):
        yield "", value.state
    elif isinstance(value, (Module, Mapping)):
        if all_plain(value.values()):
            return
        yield from ((_dotted(path, key), each) for key, each in value.items())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        if all_plain(value):
            return
        # As mlx.utils.tree_flatten writes them, where a module's own path leads here.
        dotted = "." in path or path == ""
        for number, each in enumerate(value):
            yield (f"{path}.{number}" if dotted else f"{path}[{number}]"), each
    elif is_the_users(type(value)):
        yield from ((_dotted(path, key), each) for key, each in _attributes(value))
    else:
        yield from ((_dotted(path, key), each) for key, each in held_by(value).items())


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    own: dict[str, Any] = getattr(value, "__dict__", {})
    return own.items()


def _dotted(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def is_the_users(kind: type | types.FunctionType) -> bool:
    """Whether objects of a class may hold arrays: MLX's, the user's own, and plain namespaces."""
    if kind in (types.SimpleNamespace, argparse.Namespace):
        return True
    name = kind.__module__ or ""
    root = name.split(".")[0]
    if root in ("mlx", "mlx_lm", "__main__"):
        return True
    # What is noted here is not put back.
    if isinstance(kind, type) and root == __name__.split(".")[0]:
        return False
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return bool(file) and "site-packages" not in file and root not in sys.stdlib_module_names
