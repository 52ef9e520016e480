"""What ``mx.compile`` compares a call by: arrays, constants and how they are nested.

After ``PyCompiledFun`` (MLX, ``python/src/transforms.cpp``) and ``CompileCache::find``
(``mlx/compile.cpp``): of arrays the shape and the dtype count, of ints, floats, strings and None
the value, of dicts also the order of the keys, and whether an argument is passed by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

MOST_CHANGES = 8
_LONGEST = 60  # characters of a constant that are kept


class Leaf(NamedTuple):
    """One array or constant.

    Attributes
    ----------
    path
        ``x``, ``batch[0]``, ``inputs[1].layers.0.weight``.
    what
        The dtype; of a constant its value as Python writes it, cut where it is long.
    shape
        None for a constant.
    keyword
        Whether it is passed by name.
    value
        The hash of a constant, so that long ones differ too; 0 for arrays.
    """

    path: str
    what: str
    shape: tuple[int, ...] | None = None
    keyword: bool = False
    value: int = 0

    def __str__(self) -> str:
        return self.what if self.shape is None else f"{self.what} {self.shape}"


Leaves = tuple[Leaf, ...]


def arrays(tree: Any) -> Iterator[mx.array]:
    """The arrays of a tree as MLX flattens it, and the key of ``mx.random.state``."""
    if isinstance(tree, mx.array):
        yield tree
    elif tree is mx.random.state:
        yield mx.random.state[0]
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from arrays(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from arrays(each)


def argument_leaves(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> Leaves:
    """The arguments of a call, by the names of the parameters."""
    names, rest = _parameters(function)
    found: list[Leaf] = []
    for number, value in enumerate(arguments):
        past = number - len(names)
        found += _leaves(names[number] if past < 0 else f"{rest}[{past}]", value, False)
    for name, value in keywords.items():
        found += _leaves(name, value, True)
    return tuple(found)


def state_leaves(inputs: Any) -> Leaves:
    """The arrays of what ``mx.compile`` was given as ``inputs=``; its constants do not count."""
    if inputs is None:
        return ()
    return tuple(leaf for leaf in _leaves("inputs", inputs, False) if leaf.shape is not None)


def differences(old: Leaves, new: Leaves, shapeless: bool = False) -> list[str]:
    """What differs, as ``x: (32, 784) → (17, 784)``; empty where MLX sees no difference.

    Parameters
    ----------
    old, new
        Of two calls.
    shapeless
        Of shapes only the number of dimensions counts.
    """
    if old is new:
        return []
    before = {leaf.path: leaf for leaf in old}
    found = []
    for leaf in new:
        was = before.pop(leaf.path, None)
        if was is None:
            found.append(f"{leaf.path}: new, {leaf}")
        else:
            found += [f"{leaf.path}: {change}" for change in _changes(was, leaf, shapeless)]
    found += [f"{path}: gone, was {was}" for path, was in before.items()]
    if not found:
        order = [leaf.path for leaf in old], [leaf.path for leaf in new]
        moved = [pair for pair in zip(*order, strict=True) if pair[0] != pair[1]]
        if moved:
            found.append(f"in another order: {moved[0][0]} first → {moved[0][1]} first")
    return found


def shortened(changes: Sequence[str]) -> tuple[str, ...]:
    """No more than a person reads."""
    more = len(changes) - MOST_CHANGES
    if more <= 0:
        return tuple(changes)
    return (*changes[:MOST_CHANGES], f"and {more} more")


def _changes(old: Leaf, new: Leaf, shapeless: bool) -> Iterator[str]:
    """What MLX tells two leaves apart by, one by one: the fewer, the nearer they are."""
    if old.keyword != new.keyword:
        passed = ("by position", "by name")
        yield f"{passed[old.keyword]} → {passed[new.keyword]}"
    if old.shape is None or new.shape is None:
        if old._replace(keyword=new.keyword) != new:
            yield f"{old} → {new}"
        return
    if (len(old.shape) != len(new.shape)) if shapeless else (old.shape != new.shape):
        yield f"{old.shape} → {new.shape}"
    if old.what != new.what:
        yield f"{old.what} → {new.what}"


def _leaves(path: str, value: Any, keyword: bool) -> Iterator[Leaf]:
    if isinstance(value, mx.array):
        yield Leaf(path, str(value.dtype).removeprefix("mlx.core."), tuple(value.shape), keyword)
    elif value is mx.random.state:
        yield from _leaves(path, mx.random.state[0], keyword)
    elif isinstance(value, (list, tuple)):
        if not value:
            yield Leaf(path, "[]", None, keyword)
        for number, each in enumerate(value):
            yield from _leaves(f"{path}[{number}]", each, keyword)
    elif isinstance(value, dict):
        if not value:
            yield Leaf(path, "{}", None, keyword)
        for key, each in value.items():
            yield from _leaves(f"{path}.{key}", each, keyword)
    elif isinstance(value, (int, float, str)) or value is None:
        text = repr(value)
        cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
        yield Leaf(path, cut, None, keyword, hash(text))


def _parameters(function: Callable[..., Any]) -> tuple[list[str], str]:
    """Names of the parameters by position, and of what takes the rest."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return [], "arguments"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    rest = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    names = [p.name for p in parameters if p.kind in positional]
    return names, rest[0] if rest else "arguments"
