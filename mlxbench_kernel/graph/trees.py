"""Arrays in what users keep them in: modules, optimizers, dicts, lists, their own objects."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

Named = tuple[str, mx.array]

MOST = 200_000  # objects that are looked at
_PLAIN = (str, bytes, int, float, complex, type, types.ModuleType, types.FunctionType)


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
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [(name, tree)]
    while waiting and len(seen) < MOST:
        path, value = waiting.pop()
        if isinstance(value, _PLAIN) or value is None or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, mx.array):
            yield path, value
        else:
            waiting += reversed(list(_children(path, value)))


def _children(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, optim.MultiOptimizer):
        yield from (("", each) for each in value.optimizers)
    elif isinstance(value, optim.Optimizer):
        yield "", value.state
    elif isinstance(value, (Module, Mapping)):
        yield from ((_dotted(path, key), each) for key, each in value.items())
    elif isinstance(value, (list, tuple)):
        # As mlx.utils.tree_flatten writes them, where a module's own path leads here.
        dotted = "." in path or path == ""
        for number, each in enumerate(value):
            yield (f"{path}.{number}" if dotted else f"{path}[{number}]"), each
    elif is_the_users(type(value)):
        yield from ((_dotted(path, key), each) for key, each in _attributes(value))


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    own: dict[str, Any] = getattr(value, "__dict__", {})
    return own.items()


def _dotted(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def is_the_users(kind: type) -> bool:
    """Whether objects of a class may hold arrays: MLX's, and the user's own."""
    root = kind.__module__.split(".")[0]
    if root in ("mlx", "mlx_lm", "__main__"):
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return bool(file) and "site-packages" not in file and root not in sys.stdlib_module_names
