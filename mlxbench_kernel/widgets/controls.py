"""Buttons and fields of the views."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ipywidgets as ui

from mlxbench_kernel.errors import UsageError

FIT = "max-content"
SURE_SECONDS = 5.0  # for a second press


class Ask(Protocol):
    """Runs a command on the thread of commands, and shows what it raises."""

    def __call__(self, doing: str, command: Callable[[], object], /) -> None: ...


def button(label: str, pressed: Callable[[], None], icon: str = "", tooltip: str = "") -> Any:
    """A button as wide as its label."""
    made = ui.Button(description=label, icon=icon, tooltip=tooltip or label)
    made.layout.width = FIT
    made.on_click(lambda _button: pressed())
    return made


def sure(label: str, pressed: Callable[[], None], icon: str = "", tooltip: str = "") -> Any:
    """A button for what cannot be undone: it is done at a second press within some seconds."""
    made = button(label, lambda: None, icon, tooltip)
    forgetting = threading.Timer(0.0, lambda: None)

    def ask(again: bool) -> None:
        made.button_style = "danger" if again else ""
        made.description = f"{label}: sure?" if again else label

    def press(_button: object) -> None:
        nonlocal forgetting
        forgetting.cancel()
        asked = made.button_style == "danger"
        ask(not asked)
        if asked:
            pressed()
            return
        forgetting = threading.Timer(SURE_SECONDS, ask, [False])
        forgetting.daemon = True
        forgetting.start()

    made.on_click(press)
    return made


def field(placeholder: str, entered: Callable[[], None], width: str = "12em") -> Any:
    """A line of text; Enter does what its button does."""
    made = ui.Text(placeholder=placeholder, tooltip=placeholder, layout={"width": width})

    def message(_field: object, content: object, _buffers: object) -> None:
        if isinstance(content, dict) and content.get("event") == "submit":
            entered()

    made.on_msg(message)
    return made


def count(value: int, least: int, tooltip: str) -> Any:
    """A field for a number of steps."""
    return ui.BoundedIntText(
        value=value, min=least, max=10**9, tooltip=tooltip, layout={"width": "5.5em"}
    )


def row(*parts: Any) -> Any:
    """Parts side by side, on more lines where there is no room."""
    return ui.HBox(
        parts, layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 8px"}
    )


def together(*parts: Any) -> Any:
    """Parts that stay on one line."""
    return ui.HBox(parts, layout={"align_items": "center"})


def number(name: str, text: str) -> float:
    """What somebody typed for a number.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{name}: {text!r} is no number: type one, as 1e-3") from None


def wanted(text: str, what: str) -> str:
    """What somebody typed, if anything.

    Raises
    ------
    UsageError
        Nothing was typed.
    """
    if not text.strip():
        raise UsageError(f"{what} is empty: type it into the field")
    return text.strip()


def parts_of(widget: Any) -> Iterator[Any]:
    """A widget with all that are inside it, and what these are laid out by."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts_of(child)
    if isinstance(widget, ui.DOMWidget):
        yield from (
            part for part in (widget.layout, getattr(widget, "style", None))
            if isinstance(part, ui.Widget)
        )  # fmt: skip


def close_inside(view: Any) -> None:
    """Close all that is inside a widget, the innermost first."""
    for part in reversed(list(parts_of(view))):
        if part is not view:
            part.close()


def say(widget: Any, text: str) -> None:
    """Show a text, unless it is shown: the browser then hears nothing."""
    if widget.value != text:
        widget.value = text
