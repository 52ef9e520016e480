"""Which sample of the layers is shown: a slider over the steps that were sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as ui

from mlxbench_kernel.widgets.controls import row
from mlxbench_kernel.widgets.stepping_layers import MEASURES


class SampleSlider:
    """Chooses a measure of the layers, and a sampled step: the latest, or any.

    Parameters
    ----------
    changed
        Called when something else was chosen.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.measure = ui.Dropdown(
            options=list(MEASURES), layout={"width": "13em"}, tooltip="measure of the layers"
        )
        self.slider = ui.IntSlider(
            min=0, max=0, readout=False, tooltip="sampled step", layout={"flex": "1 1 12em"}
        )
        # Whether to follow cannot be seen from where the slider is: what the browser says of it
        # comes late while a cell runs.
        self.latest = ui.Checkbox(
            value=True, description="latest", indent=False, layout={"width": "max-content"}
        )
        self.said = ui.Label()
        self.widget = row(self.measure, self.latest, self.slider, self.said)
        self._steps: tuple[int, ...] = ()
        for part in (self.measure, self.slider, self.latest):
            part.observe(lambda _change: changed(), "value")

    def show(self, steps: Sequence[int], sampling: int) -> None:
        """Offer the steps that were sampled.

        Parameters
        ----------
        steps
            In order.
        sampling
            A sample is taken every so many steps.
        """
        slider, now, latest = self.slider, tuple(int(step) for step in steps), self.latest.value
        shown, self._steps = self.step, now
        last = max(len(now) - 1, 0)
        index = now.index(shown) if shown in now and not latest else last
        # One after the other: in one message the browser moves the handle within the old range.
        slider.max = last
        slider.value = index
        slider.disabled = latest
        every = f"sampled every {sampling} steps" if sampling != 1 else "sampled at each step"
        said = f"step {self.step} · {every}" if self._steps else f"no sample yet · {every}"
        if self.said.value != said:
            self.said.value = said

    @property
    def step(self) -> int | None:
        """The step that is chosen; None before the first sample."""
        if not self._steps:
            return None
        return self._steps[min(int(self.slider.value), len(self._steps) - 1)]

    def chosen(self) -> tuple[str, str, Any]:
        """Title and name of the measure, and the step."""
        title = str(self.measure.value)
        return title, MEASURES[title], self.step
