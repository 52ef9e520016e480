"""What a function uses besides what it is given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def bound(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> dict[str, Any]:
    """The arguments by the names of the parameters."""
    try:
        return dict(inspect.signature(function).bind(*arguments, **keywords).arguments)
    except (TypeError, ValueError):  # a builtin, or it does not fit: the call says so
        return {**{str(number): each for number, each in enumerate(arguments)}, **keywords}


def reached(function: Callable[..., Any]) -> dict[str, Any]:
    """The variables that a function uses, also through what mx.compile and functools wrap."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, functools.partial):
            fixed = {**{str(n): value for n, value in enumerate(each.args)}, **each.keywords}
            found.update({name: value for name, value in fixed.items() if name not in found})
            waiting += [each.func, *fixed.values()]
            continue
        if inspect.ismethod(each):
            found.setdefault("self", each.__self__)
        each = inspect.unwrap(each) if callable(each) else each
        each = getattr(each, "__func__", each)
        if not inspect.isfunction(each):
            continue
        try:
            used = inspect.getclosurevars(each)
        except ValueError:  # a name of a function around it has no value yet
            continue
        for name, value in {**used.globals, **used.nonlocals}.items():
            if not inspect.ismodule(value):
                found.setdefault(name, value)
                waiting.append(value)
    return found
