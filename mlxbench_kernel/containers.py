"""Containers that are given back what they held, whatever their class does on assignment."""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import Any

CONTAINERS = (dict, list, set, deque)


def contents(container: Any) -> Any:
    """A plain copy of what a dict, list, set or deque holds, by reference."""
    if isinstance(container, dict):
        return dict(container)
    return set(container) if isinstance(container, set) else list(container)


def holds(container: Any, held: Any) -> bool:
    """Whether a container still holds the very objects of `contents`, in their order."""
    if len(container) != len(held):
        return False
    if isinstance(container, set):
        return bool(container == held)
    if isinstance(container, dict):
        ordered = all(map(operator.eq, container, held))
        return ordered and all(map(operator.is_, container.values(), held.values()))
    return all(map(operator.is_, container, held))


def refill(container: Any, held: Mapping[Any, Any] | Iterable[Any]) -> None:
    """Have a container hold this and nothing else, in this order.

    Parameters
    ----------
    container
        A dict, list, set or deque; of a subclass, its own methods are not called. An OrderedDict
        keeps its order beside the dict, so it is filled by its own.
    held
        As `contents` gives it.
    """
    if isinstance(container, dict):
        _refill_dict(container, dict(held))
    elif isinstance(container, list):
        put(container, slice(None), list(held))
    else:
        kind = _kind(container)
        kind.clear(container)
        (set.update if kind is set else deque.extend)(container, held)


def put(container: dict[Any, Any] | list[Any], key: Any, value: Any) -> None:
    """Have a dict or a list hold something at a key or an index, as `refill` does."""
    _kind(container).__setitem__(container, key, value)


def _refill_dict(container: dict[Any, Any], held: dict[Any, Any]) -> None:
    kind = _kind(container)
    # Another thread may be looking for what stays.
    for key in [key for key in container if key not in held]:
        kind.__delitem__(container, key)
    ordered = all(map(operator.eq, container, held))
    if not ordered:
        kind.clear(container)
    for key, value in held.items():
        if not ordered or container.get(key, container) is not value:
            kind.__setitem__(container, key, value)


def _kind(container: Any) -> Any:
    return next(kind for kind in (OrderedDict, *CONTAINERS) if isinstance(container, kind))
