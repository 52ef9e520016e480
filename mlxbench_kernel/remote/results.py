"""What a rank has found for a notebook, until that takes it; this runs on the rank.

What ranks do for a notebook they do in a cell, whose value would be printed and kept in the user's
``Out``. So it is kept here, one result for each function that is called so.
"""

from __future__ import annotations

import importlib
import traceback
from typing import Any

_KEPT: dict[tuple[str, str], Any] = {}


def keep(module: str, function: str, *arguments: Any) -> None:
    """Call a function of a module, and keep what it returns in place of what it did before."""
    _KEPT.pop((module, function), None)
    called = getattr(importlib.import_module(module), function)
    try:
        _KEPT[module, function] = called(*arguments)
    except BaseException as error:
        try:
            _forget_frames(error)
        finally:  # an interrupt often comes twice
            _forget_frames(error)
        raise


def _forget_frames(error: BaseException) -> None:
    """Let go of what frames hold: IPython keeps the last error, and here a model with it.

    A frame that was cleared still holds its function, and what that closes over.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = None
            left += [each.__cause__, each.__context__]


def take(module: str, function: str) -> Any:
    """What the function has returned, which is not kept any more; None where there is nothing."""
    return _KEPT.pop((module, function), None)
