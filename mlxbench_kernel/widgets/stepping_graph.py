"""The graph of a step that gave NaN, below a stepper's dashboard."""

from __future__ import annotations

import ipywidgets as ui

from mlxbench_kernel.remote.mirror import State
from mlxbench_kernel.widgets.controls import Ask, button, row
from mlxbench_kernel.widgets.graphs import view_of_step
from mlxbench_kernel.widgets.stepping_page import said_line
from mlxbench_kernel.widgets.stepping_source import Stepping

OPEN = "Open the graph at this operation"


class BadStep:
    """Offers to open the graph where NaN begins, and holds it.

    Parameters
    ----------
    stepping, ask
        As of `Movement`.
    """

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.offer = row(button(OPEN, self._open, "sitemap", "The step is evaluated once more"))
        self.offer.layout.display = "none"
        self.said = ui.HTML()
        self.head = row(self.said, button("Close the graph", self._close, "times"))
        self.place = ui.VBox([self.head])
        self._close()

    def show(self, state: State) -> None:
        """Offer it where the stepper stands at such a step."""
        there = state.broke == "nonfinite" and not state.playing
        self.offer.layout.display = "" if there else "none"

    def _open(self) -> None:
        def command() -> None:
            found = self._stepping.graph()
            view = view_of_step(found)
            self._close()
            self.said.value = said_line(f"step {found.step}: {found.said}")
            self.place.children = (self.head, view)
            self.place.layout.display = ""

        self._ask("evaluating the step once more", command)

    def _close(self) -> None:
        views = self.place.children[1:]
        self.place.layout.display = "none"
        self.place.children = (self.head,)
        for view in views:
            view.close()
