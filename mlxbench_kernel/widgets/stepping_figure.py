"""The figure of a stepper's dashboard: curves of branches, layers × ranks, times of ranks.

It is one figure, since each brings the whole of plotly's code along, in 5 MB. Its texts take
the colours of JupyterLab from the style sheet of `stepping_page.Page`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mlxbench_kernel.training import History
from mlxbench_kernel.training.validating import LOSS
from mlxbench_kernel.widgets.stepping_recent import PARTS

POINTS = 2000  # of a curve, at most
MOST_NAMED = 16  # layers; what the mouse points at is named in full
LONGEST = 18  # letters of such a name
UNANSWERED = 0.5  # seconds after which the browser is taken to be away
# Each can be seen on white and on black.
CURVE_MEASURES = ("loss", "learning_rate")
BRANCHES = (
    "#3b82c4", "#e0702a", "#2a9d5c", "#c2559d", "#8a6fd1", "#a98500", "#2a9fb0", "#d14b4b",
)  # fmt: skip
TIMES = dict(zip(PARTS, ("#a98500", "#3b82c4", "#e0702a"), strict=True))
RED = "#e53935"
GREY = "#808080"
GRID = "rgba(128, 128, 128, 0.25)"
AXIS = {
    "gridcolor": GRID,
    "linecolor": GRID,
    "zerolinecolor": GRID,
    "automargin": False,  # it is half the time of drawing
    "showline": True,
    "ticks": "",
}
HEAT, HEAT_BAD, BARS, HERE, BAD, VALIDATED, CURVES = 0, 1, 2, 5, 6, 7, 8  # where traces begin


class LiveFigure(go.FigureWidget):  # type: ignore[misc]
    """A figure that one thread draws while the browser's messages arrive on another.

    While a message is taken in, ipywidgets holds back what changes and merges it, so that an
    update sent meanwhile would be lost (`Widget.set_state`): a lock keeps the two apart. What
    plotly sends back after each update, the defaults of all traces, is not read; that it comes
    says that the update is drawn.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.__dict__["turn"] = threading.RLock()
        self.__dict__["sent"] = 0.0
        self.__dict__["drawn"] = 0
        super().__init__(*arguments, **options)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take in what the browser says."""
        with self.turn:
            deltas = sync_data.pop("_js2py_traceDeltas", None)
            sync_data.pop("_js2py_layoutDelta", None)
            if deltas:
                self.__dict__["drawn"] = deltas["trace_edit_id"]
            if sync_data:
                super().set_state(sync_data)

    def ready(self) -> bool:
        """Whether at most one update is on its way, or no answer is to be expected."""
        if not self._view_count or self.drawn >= self._last_trace_edit_id - 1:
            return True
        return time.monotonic() - float(self.sent) > UNANSWERED

    def sending(self) -> None:
        """Note that an update goes out."""
        self.__dict__["sent"] = time.monotonic()


class StepperFigure:
    """Draws what it is given; what did not change is not sent again.

    Each method is called between ``with figure.drawing():``, by one thread at a time.

    Parameters
    ----------
    ranks
        How many there are.
    """

    def __init__(self, ranks: int) -> None:
        numbers = list(range(ranks))
        self.widget = LiveFigure(_fixed_traces(numbers), _layout(numbers))
        self.widget._config = {"responsive": True, "displaylogo": False}
        self._slots: list[str] = []  # the branch of each pair of curves; "" if it is free
        self._shown: dict[str, Any] = {}

    def drawing(self) -> _Drawing:
        """What is drawn inside goes to the browser as one message."""
        return _Drawing(self.widget)

    def curves(
        self, history: History, branches: Sequence[str], current: str, changed: set[str]
    ) -> None:
        """Draw loss and learning rate of branches.

        Parameters
        ----------
        history
            Of a rank.
        branches
            All that there are; curves of others go away.
        current
            The one that is stepped.
        changed
            Those with other data than at the last call.
        """
        for slot, name in enumerate(self._slots):
            if name and name not in branches:
                self._slots[slot] = ""
                self._pair(slot, {"visible": False, "x": [], "y": []})
        for name in branches:
            new = name not in self._slots
            slot = self._take(name) if new else self._slots.index(name)
            if new or name in changed:
                for trace, measure in zip(self._traces(slot), CURVE_MEASURES, strict=True):
                    steps, values = _thin(history, name, measure)
                    trace.update(x=steps, y=values)
                    if measure == "loss" and name == current:
                        self._not_finite(steps, values)
        if self._changes("current", (current, tuple(self._slots))):
            for slot, name in enumerate(self._slots):
                width, opacity = (2.2, 1.0) if name == current else (1.4, 0.7)
                self._pair(slot, {"line.width": width, "opacity": opacity})

    def validated(self, history: History, branch: str) -> None:
        """Mark what a branch was validated with.

        Parameters
        ----------
        history
            Of a rank.
        branch
            The one that is stepped.
        """
        steps, values = _thin(history, branch, LOSS)
        if self._changes("validated", (steps.tolist(), values.tolist())):
            self.widget.data[VALIDATED].update(x=steps, y=values, showlegend=len(steps) > 0)

    def here(self, step: int, loss: float) -> None:
        """Mark where the stepper is."""
        if self._changes("here", (step, loss)):
            at = [step] if np.isfinite(loss) else []
            self.widget.data[HERE].update(x=at, y=[loss] if at else [])

    def times(self, parts: NDArray[np.float64]) -> None:
        """Draw the time of a step on each rank.

        Parameters
        ----------
        parts
            Milliseconds, float64 [parts, ranks].
        """
        for bar, values in enumerate(np.round(parts, 3)):
            shown = _gaps(values)
            if self._changes(f"bar {bar}", shown):
                self.widget.data[BARS + bar].y = shown

    def heat(
        self,
        layers: Sequence[str],
        values: NDArray[np.float64],
        there: NDArray[np.bool_],
        title: str,
    ) -> None:
        """Draw a measure of layers on ranks.

        Parameters
        ----------
        layers
            Their names, the first at the top.
        values
            float64 [layers, ranks].
        there
            Which ranks have been measured, bool [ranks].
        title
            What it is, and of which step.
        """
        counts = title.startswith("non-finite")
        bad = there & ((values > 0) if counts else ~np.isfinite(values))
        with np.errstate(divide="ignore", invalid="ignore"):
            shown = np.where(there, 0.0, np.nan) if counts else np.log10(values)
        said = [
            [f"{layer}: {_say(value)}" for value in row]
            for layer, row in zip(layers, values, strict=True)
        ]
        if self._changes("layers", tuple(layers)):
            named = range(0, len(layers), -(-len(layers) // MOST_NAMED) or 1)
            texts = shortened(layers)
            self.widget.layout.yaxis3.update(
                tickvals=list(named), ticktext=[texts[row] for row in named]
            )
        if self._changes("heat", (title, said)):
            common = {"y": np.arange(len(layers), dtype=np.int32), "text": said}
            good = np.where(np.isfinite(shown) & ~bad, shown, np.nan)
            rows = [_gaps(row) for row in good]
            self.widget.data[HEAT].update(z=rows, showscale=not counts, **common)
            red = [[1 if wrong else None for wrong in row] for row in bad]
            self.widget.data[HEAT_BAD].update(z=red, **common)
            self.widget.layout.annotations[0].text = title

    def logarithmic(self, loss: bool, rate: bool) -> None:
        """Choose the scales of loss and learning rate."""
        for axis, wanted in (("yaxis", loss), ("yaxis2", rate)):
            if self._changes(axis, wanted):
                self.widget.layout[axis].type = "log" if wanted else "linear"

    def _changes(self, what: str, value: object) -> bool:
        if what in self._shown and self._shown[what] == value:
            return False
        self._shown[what] = value
        return True

    def _take(self, name: str) -> int:
        """Curves for a branch: those of one that went away, or new ones."""
        if "" in self._slots:
            slot = self._slots.index("")
            self._slots[slot] = name
            self._pair(slot, {"visible": True, "name": name})
            return slot
        colour = BRANCHES[len(self._slots) % len(BRANCHES)]
        common: dict[str, Any] = {
            "name": name, "legendgroup": f"pair {len(self._slots)}", "line.color": colour,
            "mode": "lines",
        }  # fmt: skip
        loss = go.Scatter(xaxis="x", yaxis="y", hovertemplate="step %{x}: %{y:.5g}", **common)
        rate = go.Scatter(
            xaxis="x2", yaxis="y2", hovertemplate="step %{x}: %{y:.4g}", showlegend=False, **common
        )
        rate.line.shape = "hv"
        self.widget.add_traces([loss, rate])
        self._slots.append(name)
        return len(self._slots) - 1

    def _traces(self, slot: int) -> Sequence[Any]:
        data: Sequence[Any] = self.widget.data
        return data[CURVES + 2 * slot : CURVES + 2 * slot + 2]

    def _pair(self, slot: int, changes: Mapping[str, Any]) -> None:
        for trace in self._traces(slot):
            for name, value in changes.items():
                trace[name] = value

    def _not_finite(self, steps: NDArray[np.int32], loss: NDArray[np.float32]) -> None:
        """Mark the steps whose loss is no number, as high as the last that was one."""
        good = np.isfinite(loss)
        wrong = steps[~good]
        if self._changes("bad", wrong.tolist()):
            before = np.searchsorted(steps[good], wrong) - 1
            height = loss[good][np.maximum(before, 0)] if good.any() else np.zeros(len(wrong))
            self.widget.data[BAD].update(x=wrong, y=height)


class _Drawing:
    """One update of a figure, with the lock of its messages held."""

    def __init__(self, widget: LiveFigure) -> None:
        self._widget, self._batch = widget, widget.batch_update()

    def __enter__(self) -> None:
        self._widget.turn.acquire()
        self._widget.sending()
        self._batch.__enter__()

    def __exit__(self, *error: Any) -> None:
        try:
            self._batch.__exit__(*error)
        finally:
            self._widget.turn.release()


def _thin(
    history: History, branch: str, measure: str
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    steps, values = history.series(branch, measure, POINTS)
    return np.asarray(steps, dtype=np.int32), np.asarray(values, dtype=np.float32)


def _gaps(values: NDArray[np.float64]) -> list[float | None]:
    """As JSON has it, which knows no NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]


def shortened(names: Sequence[str]) -> list[str]:
    """Names of layers without what all of them begin with; long ones keep their number and end."""
    words = [name.split(".") for name in names]
    shared = 0
    while all(len(each) > shared + 1 for each in words) and (
        len({each[shared] for each in words}) == 1 < len(words)
    ):
        shared += 1
    return [_fitting(".".join(each[shared:])) for each in words]


def _fitting(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    first = name.partition(".")[0]
    number = first if first.isdigit() else ""
    return f"{number}…{name[len(number) + 1 - LONGEST :]}"


def _say(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else str(value)


def _fixed_traces(ranks: list[int]) -> list[Any]:
    heat = {"x": ranks, "y": [], "z": [], "xaxis": "x3", "yaxis": "y3", "xgap": 1}
    told = "rank %{x}, %{text}<extra></extra>"
    scale = {
        "x": 0.515, "xanchor": "left", "y": 0.0, "yanchor": "bottom", "len": 0.3, "thickness": 9,
        "tickprefix": "10<sup>", "ticksuffix": "</sup>", "outlinewidth": 0, "nticks": 6,
    }  # fmt: skip
    mark = {"mode": "markers", "xaxis": "x", "yaxis": "y", "showlegend": False}
    return [
        go.Heatmap(**heat, colorscale="Viridis", colorbar=scale, hovertemplate=told),
        go.Heatmap(**heat, colorscale=[[0, RED], [1, RED]], showscale=False, hovertemplate=told),
        *(
            go.Bar(
                x=ranks, y=[], name=part, marker={"color": colour, "line": {"width": 0}},
                xaxis="x4", yaxis="y4", showlegend=False,
                hovertemplate="rank %{x}: %{y:.2f} ms",
            )
            for part, colour in TIMES.items()
        ),
        go.Scatter(**mark, marker={"size": 9, "color": GREY}, hovertemplate="now: step %{x}"),
        go.Scatter(
            **mark, name="not finite", marker={"size": 9, "color": RED, "symbol": "x"},
            hovertemplate="step %{x}: the loss is not finite<extra></extra>",
        ),
        go.Scatter(
            **{**mark, "mode": "lines+markers"}, name="validation", line={"dash": "dot"},
            marker={"size": 7, "symbol": "diamond"}, line_color=GREY,
            hovertemplate="step %{x}: validation %{y:.5g}<extra></extra>",
        ),
    ]  # fmt: skip


def _layout(ranks: list[int]) -> dict[str, Any]:
    rank_axis = {
        **AXIS, "type": "linear", "tickmode": "array", "tickvals": ranks, "zeroline": False,
        "range": [-0.5, len(ranks) - 0.5], "title": {"text": "rank", "standoff": 4},
    }  # fmt: skip
    wide, low = {**AXIS, "domain": [0, 1]}, {**AXIS, "domain": [0, 0.3]}
    heading = {"xref": "paper", "yref": "paper", "showarrow": False, "yanchor": "bottom"}
    parts = " ".join(
        f'<span style="color: {colour}">■</span> {part}' for part, colour in TIMES.items()
    )
    return {
        "height": 660,
        "margin": {"l": 132, "r": 8, "t": 26, "b": 40},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"color": GREY, "size": 12},
        "hovermode": "closest",
        "uirevision": "as it was",
        "barmode": "stack",
        "bargap": 0.3,
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": GREY, "activecolor": BRANCHES[0]},
        "legend": {
            "bgcolor": "rgba(128, 128, 128, 0.12)", "x": 1, "xanchor": "right", "y": 1,
            "yanchor": "top",
        },
        "annotations": [
            {**heading, "text": "", "x": 0, "xshift": -124, "y": 0.305, "xanchor": "left"},
            {**heading, "text": f"ms a step: {parts}", "x": 1, "y": 0.305, "xanchor": "right"},
        ],
        "xaxis": {**wide, "anchor": "y", "matches": "x2", "showticklabels": False},
        "yaxis": {**AXIS, "domain": [0.67, 1], "anchor": "x", "title": {"text": "loss"}},
        "xaxis2": {**wide, "anchor": "y2", "title": {"text": "step", "standoff": 2}},
        "yaxis2": {
            **AXIS, "domain": [0.46, 0.63], "anchor": "x2", "title": {"text": "learning rate"},
            "rangemode": "tozero",  # else one that never changes stands between -1 and 1, as if 0
            "nticks": 4, "exponentformat": "e",
        },
        "xaxis3": {**rank_axis, "domain": [0, 0.5], "anchor": "y3"},
        "yaxis3": {
            **low, "anchor": "x3", "autorange": "reversed", "tickmode": "array",
            "showgrid": False, "zeroline": False,
        },
        "xaxis4": {**rank_axis, "domain": [0.72, 1], "anchor": "y4"},
        "yaxis4": {
            **low, "anchor": "x4", "rangemode": "tozero",
        },
    }  # fmt: skip
