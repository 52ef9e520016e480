"""What a call takes and gives as flat, named arrays, as MLX's files of functions have it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError

Named = tuple[str, mx.array]


class Signature:
    """The arguments of a call, taken apart.

    Arrays that are arguments themselves stay what they are, by position or keyword. Of lists,
    tuples and dicts each array becomes a keyword, called after its place: ``params.layers.0.w``.

    Parameters
    ----------
    function, arguments, keywords
        The call. Its arguments hold arrays and None only.

    Attributes
    ----------
    positional, keywords : list of (str, mlx.core.array)
        With the names of the function's parameters.

    Raises
    ------
    UsageError
        An argument is or holds something else; names it.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self._arguments, self._keywords = arguments, keywords
        self._names = _names(function, len(arguments))
        self.positional: list[Named] = []
        self.keywords: list[Named] = []
        for name, value in zip(self._names, arguments, strict=True):
            into = self.positional if isinstance(value, mx.array) else self.keywords
            into += _taken(name, value)
        for name, value in keywords.items():
            self.keywords += _taken(name, value)
        self.keywords.sort(key=lambda pair: pair[0])  # as MLX keeps them
        seen: set[str] = set()
        for name, _ in self.inputs:
            if name in seen:
                raise UsageError(f"two inputs would be called {name}: rename a key of the dict")
            seen.add(name)

    @property
    def inputs(self) -> list[Named]:
        """All arrays, those by position first."""
        return [*self.positional, *self.keywords]

    def call(self, function: Callable[..., Any], given: Sequence[mx.array]) -> Any:
        """Call a function with other arrays in the places of `inputs`."""
        positional = iter(given[: len(self.positional)])
        names = [name for name, _ in self.keywords]
        by_name = dict(zip(names, given[len(self.positional) :], strict=True))
        arguments = [
            next(positional) if isinstance(value, mx.array) else _filled(name, value, by_name)
            for name, value in zip(self._names, self._arguments, strict=True)
        ]
        keywords = {name: _filled(name, each, by_name) for name, each in self._keywords.items()}
        return function(*arguments, **keywords)


def results(value: Any) -> list[Named]:
    """The arrays that a call returned, with the names ``output``, ``0``, ``1`` or ``logits``.

    Raises
    ------
    UsageError
        It returned something else than arrays in lists, tuples and dicts.
    """
    named: list[Named] = []
    for path, each in _leaves("", value):
        if not isinstance(each, mx.array):
            place = f" at {path}" if path else ""
            raise UsageError(
                f"the function returns a {_kind(each)}{place}, and a file gives arrays only: "
                "return arrays, in lists, tuples and dicts"
            )
        named.append((path or "output", each))
    if not named:
        raise UsageError("the function returns no arrays: return what the file is to give")
    return named


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """What the function calls its arguments by position, as ``x`` or ``rest.0``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin
        parameters = []
    names = [each.name for each in parameters[:count]]
    for place, each in enumerate(parameters[:count]):
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            return names[:place] + [f"{each.name}.{rest}" for rest in range(count - place)]
    return names + [str(number) for number in range(len(names), count)]


def _taken(name: str, value: Any) -> list[Named]:
    named: list[Named] = []
    for path, each in _leaves(name, value):
        if isinstance(each, mx.array):
            named.append((path, each))
        elif each is not None:
            raise UsageError(_refusal(path, each))
    return named


def _refusal(path: str, value: Any) -> str:
    around = "call it in a function around yours"
    if isinstance(value, Module):
        return (
            f"{path} is a {_kind(value)}, which cannot be an input: {around}, as "
            "lambda x: f(model, x); its parameters go into the file"
        )
    if isinstance(value, (bool, int, float, complex)) or hasattr(value, "__array__"):
        return (
            f"{path} is a {_kind(value)}, and a file takes arrays only: give mx.array({path}) to "
            f"have it as an input, or fix it: {around}, as lambda x: f(x, {path})"
        )
    return (
        f"{path} is a {_kind(value)}, and a file takes arrays only, in lists, tuples and dicts: "
        f"{around} that holds it"
    )


def _kind(value: Any) -> str:
    kind = type(value)
    return f"numpy {kind.__name__}" if kind.__module__ == "numpy" else kind.__name__


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if _is_tree(value):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in parts:
            yield from _leaves(f"{path}.{key}" if path else str(key), each)
    else:
        yield path, value


def _is_tree(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict)) and not isinstance(value, Module)


def _filled(path: str, value: Any, arrays: dict[str, mx.array]) -> Any:
    """The same tree with other arrays in it."""
    if isinstance(value, mx.array):
        return arrays[path]
    if not _is_tree(value):
        return value
    if isinstance(value, dict):
        filled = {key: _filled(f"{path}.{key}", each, arrays) for key, each in value.items()}
        same = copy.copy(value)  # of whatever kind of dict
        same.update(filled)
        return same
    filled_list = [_filled(f"{path}.{number}", each, arrays) for number, each in enumerate(value)]
    make = getattr(type(value), "_make", type(value))  # of a named tuple
    return make(filled_list)
