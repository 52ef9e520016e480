"""What can be changed while a stepper plays: settings, frozen layers, breakpoints."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as ui

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.mirror import State
from mlxbench_kernel.widgets.controls import Ask, button, field, number, row, wanted
from mlxbench_kernel.widgets.stepping_panels import WIDE
from mlxbench_kernel.widgets.stepping_source import Stepping


class Settings:
    """Learning rate and the like, and which layers are frozen.

    The value that holds stands in an empty field, so that it may change while somebody types.

    Parameters
    ----------
    stepping, ask
        As of `Movement`.
    """

    title = "Settings"

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.fields: dict[str, Any] = {}
        self.rows = ui.VBox([])
        self.layer = ui.Combobox(placeholder="layer", ensure_option=False, layout={"width": "14em"})
        self.frozen = ui.HTML()
        self.widget = ui.VBox(
            [
                self.rows,
                row(button("Apply", self._apply, "check", "Set what is typed in, from here on")),
                self.layer,
                row(button("Freeze", self._freeze), button("Unfreeze", self._unfreeze)),
                self.frozen,
            ]
        )

    def show(self, state: State) -> None:
        """Show what holds."""
        if tuple(self.fields) != tuple(state.settings):
            self.fields = {name: field("", self._apply, "9em") for name in state.settings}
            self.rows.children = [
                row(ui.Label(name.replace("_", " "), layout={"width": "9em"}), each)
                for name, each in self.fields.items()
            ]
        for name, value in state.settings.items():
            self.fields[name].placeholder = "off" if value is None else f"{value:.6g}"
        if self.layer.options != tuple(state.layers):
            self.layer.options = tuple(state.layers)
        names = ", ".join(state.frozen)
        self.frozen.value = f"frozen: {escape(names)}" if names else "no layer is frozen"

    def _apply(self) -> None:
        typed = {name: each.value for name, each in self.fields.items() if each.value.strip()}

        def command() -> None:
            if not typed:
                raise UsageError("nothing is changed: type a new value into a field first")
            self._stepping.set(**{name: _value(name, text) for name, text in typed.items()})
            for name in typed:
                self.fields[name].value = ""

        self._ask(f"setting {', '.join(typed)}", command)

    def _freeze(self) -> None:
        path = self.layer.value
        self._ask(f"freezing {path}", lambda: self._stepping.freeze(wanted(path, "the layer")))

    def _unfreeze(self) -> None:
        path = self.layer.value
        self._ask(f"unfreezing {path}", lambda: self._stepping.unfreeze(wanted(path, "the layer")))


class Breakpoints:
    """What stops the stepper: check boxes, and an expression of one's own.

    Parameters
    ----------
    stepping, ask
        As of `Movement`.
    """

    title = "Breakpoints"

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.boxes: dict[str, Any] = {}
        self.list = ui.VBox([])
        self.own = field("grad_norm > 10 and step > 50", self._add, "16em")
        self.measured = ui.HTML()
        self._waiting: set[str] = set()  # boxes whose click is not done yet
        self.widget = ui.VBox(
            [self.list, row(self.own, button("Add", self._add, "plus")), self.measured]
        )

    def show(self, state: State) -> None:
        """Show which there are, and which are on."""
        if tuple(self.boxes) != tuple(state.breakpoints):
            for old in self.boxes.values():
                old.close()
            self.boxes = {
                name: self._box(name, text, name in state.active)
                for name, text in state.breakpoints.items()
            }
            self.list.children = list(self.boxes.values())
        for name, box in self.boxes.items():
            if name not in self._waiting and box.value != (name in state.active):
                box.value = name in state.active
        self.measured.value = (
            f'<div class="mlxbench-step-lines">measured: {escape(", ".join(state.measured))}</div>'
        )

    def _box(self, name: str, text: str, on: bool) -> Any:
        label = name if name == text else f"{name}: {text}"
        box = ui.Checkbox(value=on, description=label, tooltip=text, indent=False, layout=WIDE)
        box.observe(lambda change: self._turn(name, change["new"]), "value")
        return box

    def _turn(self, name: str, on: bool) -> None:
        if on == (name in self._stepping.state.active):
            return
        self._waiting.add(name)

        def command() -> None:
            try:
                (self._stepping.break_at if on else self._stepping.no_break)(name)
            finally:
                self._waiting.discard(name)

        self._ask(f"turning {'on' if on else 'off'} the breakpoint {name}", command)

    def _add(self) -> None:
        text = self.own.value

        def command() -> None:
            self._stepping.break_at(wanted(text, "the expression"))
            self.own.value = ""

        self._ask(f"adding the breakpoint {text}", command)


def _value(name: str, text: str) -> Any:
    return "off" if text.strip().lower() == "off" else number(name, text)
