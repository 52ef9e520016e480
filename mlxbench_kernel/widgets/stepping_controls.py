"""Buttons and fields of a stepper's dashboard, and the bar that moves it through its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ipywidgets as ui

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.mirror import State
from mlxbench_kernel.widgets.stepping_source import Stepping

FIT = "max-content"


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
    """A button for what cannot be undone: it is done at the second press."""
    made = button(label, lambda: None, icon, tooltip)

    def press(_button: object) -> None:
        asked = made.button_style == "danger"
        made.button_style = "" if asked else "danger"
        made.description = label if asked else f"{label}: sure?"
        if asked:
            pressed()

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


class Movement:
    """The bar of buttons that step, play, and go back.

    Parameters
    ----------
    stepping
        What is moved.
    ask
        Runs a command.
    """

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.back_by, self.run_by = count(1, 1, "steps to go back"), count(100, 1, "steps to run")
        self.target = count(0, 0, "step to go to")
        self.condition = field("loss < 0.1", self._until, "14em")
        self.name = field("name of a branch", self._branch, "10em")
        self.playing = button("Play", self._play, "play", "Play until something stops it, or pause")
        self.widget = row(
            sure("Reset", self._reset, "fast-backward", "Go back to the beginning"),
            together(
                button("Back", self._back, "step-backward", "Go back so many steps"), self.back_by
            ),
            button("Step", self._step, "step-forward", "Take one step on all ranks"),
            together(button("Run", self._run, "forward", "Take so many steps"), self.run_by),
            self.playing,
            together(
                button("Until", self._until, "flag-checkered", "Play until this holds"),
                self.condition,
            ),
            together(button("To step", self._to, "map-marker", "Go to this step"), self.target),
            together(
                button("Branch", self._branch, "code-fork", "Begin a branch at this step"),
                self.name,
            ),
        )

    def show(self, state: State) -> None:
        """Show whether it plays."""
        label, icon = ("Pause", "pause") if state.playing else ("Play", "play")
        if self.playing.description != label:
            self.playing.description, self.playing.icon = label, icon

    def _step(self) -> None:
        self._ask("taking a step", self._stepping.step)

    def _run(self) -> None:
        steps = self.run_by.value
        self._ask(f"running {steps} steps", lambda: self._stepping.run(steps))

    def _play(self) -> None:
        if self._stepping.state.playing:
            self._ask("pausing", self._stepping.pause)
        else:
            self._ask("beginning to play", self._stepping.play)

    def _until(self) -> None:
        text = self.condition.value
        self._ask(
            f"playing until {text}", lambda: self._stepping.until(wanted(text, "the condition"))
        )

    def _back(self) -> None:
        steps = self.back_by.value
        self._ask(f"going back {steps} step{'s'[: steps > 1]}", lambda: self._stepping.back(steps))

    def _to(self) -> None:
        step = self.target.value
        self._ask(f"going to step {step}", lambda: self._stepping.to(step))

    def _branch(self) -> None:
        name = self.name.value.strip()

        def command() -> None:
            self._stepping.branch(name)
            self.name.value = ""

        self._ask(f"beginning the branch {name}".rstrip(), command)

    def _reset(self) -> None:
        self._ask("going back to the beginning", self._stepping.reset)
