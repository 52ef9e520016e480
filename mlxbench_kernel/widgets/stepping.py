"""The dashboard of a stepper: curves, layers × ranks, times of ranks, and all its commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ipywidgets as ui
import numpy as np

from mlxbench_kernel.remote.mirror import State
from mlxbench_kernel.widgets.controls import parts_of, row, say
from mlxbench_kernel.widgets.live_view import LiveView
from mlxbench_kernel.widgets.stepping_controls import Movement
from mlxbench_kernel.widgets.stepping_edits import Breakpoints, Settings
from mlxbench_kernel.widgets.stepping_figure import StepperFigure
from mlxbench_kernel.widgets.stepping_graph import BadStep
from mlxbench_kernel.widgets.stepping_layers import Layers
from mlxbench_kernel.widgets.stepping_page import Page, busy_line, rate, status_line
from mlxbench_kernel.widgets.stepping_panels import Branches, Journal, Kept, Repair
from mlxbench_kernel.widgets.stepping_recent import Recent
from mlxbench_kernel.widgets.stepping_source import Stepping
from mlxbench_kernel.widgets.stepping_time import SampleSlider

SLOW = 0.25  # seconds between two redraws, while it plays, of what is not read at a glance
LONG = 0.2  # seconds of a command after which the buttons cannot be pressed


class StepperView(LiveView):
    """A stepper in a cell.

    It has two threads of its own, one for commands and one that redraws; `close` ends them.

    Parameters
    ----------
    stepping
        What is shown and driven.
    """

    def __init__(self, stepping: Stepping) -> None:
        super().__init__()
        self.stepping = stepping
        (self._commands,) = self._queues
        self.figure = StepperFigure(stepping.size)
        self.status = ui.HTML()
        self.movement, self.repair = Movement(stepping, self._ask), Repair(stepping, self._ask)
        self.bad_step = BadStep(stepping, self._ask)
        self.branches, self.settings = Branches(stepping, self._ask), Settings(stepping, self._ask)
        self.breakpoints, self.kept = Breakpoints(stepping, self._ask), Kept(stepping, self._ask)
        self.journal = Journal(stepping, self._ask)
        self.time = SampleSlider(self._changed)
        self.log_loss, self.log_rate = self._toggle("log loss"), self._toggle("log rate")
        self._panels = (self.branches, self.settings, self.breakpoints, self.kept, self.journal)
        self.panels = ui.Accordion(
            [panel.widget for panel in self._panels],
            titles=[panel.title for panel in self._panels],
            selected_index=0,
            layout={"flex": "1 1 290px", "min_width": "280px"},
        )
        self.panels.observe(lambda _change: self._changed(), "selected_index")
        left = ui.VBox(
            [Page(), row(self.log_loss, self.log_rate), self.figure.widget, self.time.widget],
            layout={"flex": "10 1 520px", "min_width": "0"},
        )
        body = ui.HBox([left, self.panels], layout={"flex_flow": "row wrap", "grid_gap": "8px"})
        above = [self.status, self.movement.widget]
        told = [self.busy, self.error, self.repair.widget, self.bad_step.offer]
        self._layers = Layers(())
        self._recent = Recent(stepping.histories)
        self._drawn: State | None = None
        self._slowly = 0.0
        self._off = False
        inside = [*above, *told, body, self.bad_step.place]
        self._begin(inside, stepping.watch, self.figure.widget.ready)

    def __repr__(self) -> str:
        state = self.stepping.state
        loss = self.stepping.histories[0].last(state.branch).get("loss")
        said = "" if loss is None else f", loss {loss:.4g}"
        ranks = f"{self.stepping.size} rank{'s'[: self.stepping.size != 1]}"
        return f"Stepper of {ranks}: step {state.step} of {state.branch}, {state.doing}{said}"

    def _toggle(self, label: str) -> Any:
        made = ui.Checkbox(description=label, indent=False, layout={"width": "max-content"})
        made.observe(lambda _change: self._changed(), "value")
        return made

    def _ask(self, doing: str, command: Callable[[], object]) -> None:
        self._commands.do(doing, command)

    def redraw(self) -> bool:
        """Draw what changed since the last call.

        Returns
        -------
        bool
            Whether something was left out, as it changes too fast to be read.
        """
        state = self.stepping.state
        waiting = self._show_commands()
        touched = self._recent.read()
        self._show_status(state)
        self.movement.show(state)
        self.repair.show(state)
        self.bad_step.show(state)
        now = time.monotonic()
        slowly = not state.playing or now - self._slowly >= SLOW
        with self.figure.drawing():
            self.figure.logarithmic(self.log_loss.value, self.log_rate.value)
            self._draw_curves(state, touched)
            if slowly:
                self.figure.times(self._recent.parts(state.branch, state.step))
                self._draw_heat(state)
        if slowly:
            self._slowly = now
            self._show_panel(state)
        self._drawn = state
        return waiting or not slowly

    def _draw_curves(self, state: State, touched: set[str]) -> None:
        before = self._drawn
        if before is None:
            changed = {each.name for each in state.branches}
        else:
            old = {each.name: each for each in before.branches}
            changed = {each.name for each in state.branches if old.get(each.name) != each}
            changed |= touched
            if (before.step, before.branch) != (state.step, state.branch):
                changed.add(state.branch)
        history = self.stepping.histories[0]
        names = [each.name for each in state.branches]
        self.figure.curves(history, names, state.branch, changed)
        self.figure.validated(history, state.branch)
        last = history.last(state.branch)
        self.figure.here(state.step, last.get("loss", np.nan) if last else np.nan)

    def _draw_heat(self, state: State) -> None:
        if self._layers.parameters != tuple(state.parameters):
            self._layers = Layers(state.parameters)
        samples = self.stepping.samples
        branch, steps = self._sampled(state)
        self.time.show(steps, state.sampling)
        title, measure, step = self.time.chosen()
        if step is not None:
            values, there = self._layers.table(samples, branch, step, measure)
            self.figure.heat(self._layers.names, values, there, f"{title}, step {step}")

    def _sampled(self, state: State) -> tuple[str, list[int]]:
        """The samples of the branch, or of the one that it left; whose they are."""
        branches = {each.name: each for each in state.branches}
        name, last = state.branch, None
        while True:
            found = [
                int(step)
                for step in self.stepping.samples[0].samples(name)
                if last is None or step <= last
            ]
            branch = branches.get(name)
            if found or branch is None or not branch.parent:
                return name, found
            name, last = branch.parent, branch.start

    def _show_commands(self) -> bool:
        """Show what is being done; whether that has to be looked at again."""
        doing = self._commands.doing
        long = bool(doing) and time.monotonic() - self._commands.since > LONG
        say(self.busy, busy_line(doing) if long else "")
        if long != self._off:
            self._off = long
            for part in parts_of(self):
                if isinstance(part, ui.Button):
                    part.disabled = long
        return bool(doing) and not long

    def _show_status(self, state: State) -> None:
        branch, step, ranks = state.branch, state.step, range(self.stepping.size)
        seconds = self._recent.mean(0, "seconds", branch, step)
        tokens, samples = (
            rate(
                sum(self._recent.rate(each, f"{unit}_per_second", branch, step) for each in ranks),
                unit,
            )
            for unit in ("tokens", "samples")
        )
        facts = [
            f"step {step}",
            f"branch {branch}",
            state.doing,
            rate(1 / seconds if seconds > 0 else np.nan, "steps"),
            tokens or samples,
            f"layers sampled every {state.sampling} steps" if state.sampling > 1 else "",
            f"replicas compared every {state.comparing}" if state.comparing else "",
        ]
        say(self.status, status_line(facts, state.said))

    def _show_panel(self, state: State) -> None:
        """The one that is open; the others are not seen."""
        if self.panels.selected_index is not None:
            self._panels[self.panels.selected_index].show(state)
