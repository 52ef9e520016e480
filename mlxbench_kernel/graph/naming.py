"""What the user calls arrays and modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.trees import named_arrays, named_modules


def visible(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The user's variables, without those that IPython keeps results in."""
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out")
    }


def outer_modules(namespace: Mapping[str, Any]) -> dict[str, Module]:
    """The modules that are no part of another one, by how they are reached from variables.

    Where variables of their own stand for parts of a model, those do not count.
    """
    found: dict[int, tuple[str, Module]] = {}
    # A variable of its own is a better name than a place in a list or in an object.
    for name, value in sorted(namespace.items(), key=lambda item: not _is_module(item[1])):
        for path, module in named_modules(name, value):
            found.setdefault(id(module), (path, module))
    inner = {
        id(part) for _, module in found.values() for path, part in module.named_modules() if path
    }
    return {path: module for number, (path, module) in found.items() if number not in inner}


def array_names(namespace: Mapping[str, Any], modules: Mapping[str, Module]) -> dict[int, str]:
    """MLX's ids of the arrays in the user's variables, with what to call them.

    Parameters
    ----------
    namespace
        The variables.
    modules
        From `outer_modules`. A parameter is called by its path in its module, whatever other
        variables hold it; where there are several, after the variable.
    """
    module = native.load()
    if module is None:
        return {}
    found: dict[int, str] = {}
    for name, value in modules.items():
        for path, array in named_arrays(name if len(modules) > 1 else "", value):
            found.setdefault(module.array_id(array), path)
    known = {id(value) for value in modules.values()}
    for name, value in sorted(namespace.items(), key=lambda item: _precedence(item[1])):
        if id(value) not in known:
            for path, array in named_arrays("" if _is_module(value) else name, value):
                found.setdefault(module.array_id(array), path or name)
    return found


def numbered(graph: Graph, names: Mapping[int, str]) -> dict[int, str]:
    """The names by the numbers of a graph's arrays."""
    ids = graph.id.tolist()
    return {number: names[each] for number, each in enumerate(ids) if each in names}


def _is_module(value: Any) -> bool:
    return isinstance(value, Module)


def _precedence(value: Any) -> int:
    kinds = (optim.Optimizer, mx.array)
    return next((place for place, kind in enumerate(kinds) if isinstance(value, kind)), len(kinds))
