"""Trees of state taken apart into arrays by name and the rest as JSON, and put back in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.base import Module

from mlxbench_kernel.containers import refill
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank.frozen import containers

PLAIN = (bool, int, float, str, type(None))
OTHER = ...  # stands where something was that is no data


def take_apart(tree: Any) -> tuple[Any, dict[str, mx.array]]:
    """The structure of a tree for JSON, and its arrays under the names of `tree_flatten`.

    What is no data (functions, for instance) is left out.

    Raises
    ------
    UsageError
        A dict has keys other than str and int, or a part holds itself.
    """
    arrays: dict[str, mx.array] = {}
    return _structure(tree, "", arrays, []), arrays


def _structure(value: Any, path: str, arrays: dict[str, mx.array], around: list[Any]) -> Any:
    value = _inside(value)
    if isinstance(value, mx.array):
        name = path
        while name in arrays:
            name += "~"
        arrays[name] = value
        return {"array": name, "dtype": dtype_name(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, PLAIN):
        return value
    if any(each is value for each in around):
        raise UsageError(f"{path} holds itself; give the parts of it that hold arrays")
    around = [*around, value]
    if isinstance(value, dict):
        items = []
        for key, each in value.items():
            if type(key) not in (str, int):
                raise UsageError(f"{path or 'it'} has the key {key!r}; keys have to be str or int")
            if isinstance(each, (np.ndarray, np.generic)):
                kind = type(each).__name__
                raise UsageError(
                    f"{_joined(path, key)} is NumPy's {kind}; keep an mx.array or a number instead"
                )
            if is_data(each):
                items.append([key, _structure(each, _joined(path, key), arrays, around)])
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        parts = [_structure(each, _joined(path, i), arrays, around) for i, each in enumerate(value)]
        return {kind: parts}
    return {"other": type(value).__name__}


def put_together(structure: Any, arrays: Mapping[str, mx.array]) -> Any:
    """The tree of dicts, lists, tuples, arrays and numbers; ``...`` for what is no data.

    Raises
    ------
    KeyError, TypeError, ValueError
        It is no structure, or of other arrays.
    """
    if not isinstance(structure, dict):
        return structure
    ((kind, content), *_) = structure.items()
    if kind == "array":
        return arrays[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: put_together(each, arrays) for key, each in content}
    if kind == "other":
        return OTHER
    return {"list": list, "tuple": tuple}[kind](put_together(each, arrays) for each in content)


def mismatch(live: Any, tree: Any, path: str, strict: bool = False) -> str | None:
    """Why a tree cannot be put into a live one: the first part that is another there.

    Parameters
    ----------
    live, tree
        What is there, and what was loaded.
    path
        What they are called.
    strict
        Whether both have to hold the same keys, as below a module.
    """
    live = _inside(live)
    strict = strict or isinstance(live, Module)
    here, there = _form(live), _form(tree)
    both = isinstance(live, mx.array) and isinstance(tree, mx.array)
    if (both or strict) and here != there and tree is not OTHER:
        return f"{path} is {here} here and {there} in the checkpoint"
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(live, dict) and isinstance(tree, dict):
        if strict:
            for key in [*live, *tree]:
                if key not in tree and is_data(live[key]):
                    return f"{_joined(path, key)} is not in the checkpoint"
                if key not in live:
                    return f"{_joined(path, key)} of the checkpoint is not there"
        pairs = [(key, live[key], tree[key]) for key in live if key in tree]
    elif isinstance(live, (list, tuple)) and isinstance(tree, (list, tuple)):
        if len(live) != len(tree) and (strict or isinstance(live, tuple)):
            return f"{path} has {len(live)} parts here and {len(tree)} in the checkpoint"
        if any(each is OTHER for each in tree[len(live) :]):
            return f"{path} held what no checkpoint keeps, and that is not there"
        pairs = [(i, *pair) for i, pair in enumerate(zip(live, tree, strict=False))]
    found = (mismatch(old, new, _joined(path, key), strict) for key, old, new in pairs)
    return next(filter(None, found), None)


def merged(live: Any, tree: Any) -> Any:
    """Put a tree into the dicts and lists that are there; gives the value for their place."""
    if tree is OTHER:
        return live
    inside = _inside(live)
    if isinstance(inside, dict) and isinstance(tree, dict):
        kept = {
            key: merged(value, tree[key]) if key in tree else value
            for key, value in inside.items()
            if key in tree or not _is_plain(value)
        }
        refill(inside, {**kept, **{key: tree[key] for key in tree if key not in kept}})
        return live
    if isinstance(inside, list) and isinstance(tree, list):
        values = [merged(old, new) for old, new in zip(inside, tree, strict=False)]
        if inside is live:
            refill(live, values + tree[len(values) :])
        return live
    if isinstance(inside, tuple) and isinstance(tree, tuple):
        values = [merged(old, new) for old, new in zip(inside, tree, strict=True)]
        return type(inside)(*values) if hasattr(inside, "_fields") else type(inside)(values)
    return tree


def is_data(value: Any) -> bool:
    """Whether something is kept in a checkpoint, or may hold something that is."""
    return isinstance(value, (mx.array, dict, list, tuple, optim.Optimizer, *PLAIN))


def dtype_name(array: mx.array) -> str:
    """MLX's name of the dtype, as ``float32``."""
    return str(array.dtype).removeprefix("mlx.core.")


def _is_plain(value: Any) -> bool:
    """Whether it is data and nothing else, so that it may go where a checkpoint lacks it."""
    if isinstance(value, (Module, optim.Optimizer)):
        return False
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (mx.array, *PLAIN))


def _inside(value: Any) -> Any:
    return containers(value) if isinstance(value, optim.Optimizer) else value


def _joined(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _form(value: Any) -> str:
    if isinstance(value, mx.array):
        return f"{dtype_name(value)} {list(value.shape)}"
    for kind in (dict, list, tuple):
        if isinstance(value, kind):
            return f"a {kind.__name__}"
    return "a number" if isinstance(value, PLAIN) else f"a {type(value).__name__}"
