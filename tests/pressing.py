"""Uses a view as a person does, without a browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets


def wait(holds: Callable[[], object]) -> None:
    """Until something that happens on another thread has happened."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def inside(widget: Any) -> Iterator[Any]:
    """A widget with all that are inside it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def press(view: Any, label: str) -> None:
    """Press a button as the browser does."""
    (found,) = (
        each
        for each in inside(view)
        if isinstance(each, ipywidgets.Button) and each.description == label
    )
    found._handle_custom_msg({"event": "click"}, [])
