"""What holds the memory of a rank: a treemap that one can go into, and what would free most."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import ipywidgets as ui
import plotly.graph_objects as go

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import Holdings
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets.controls import Ask, button, row
from mlxbench_kernel.widgets.memory_tables import freeable_table, grown_table, waiting

# Each can be seen on white and on black.
COLOURS = {
    "parameters": "#3b82c4", "optimizer": "#e0702a", "kv cache": "#2a9d5c",
    "gradients": "#c94f4f", "variables": "#8a6fd1", "graph": "#c2559d", "snapshots": "#a98500",
    "history": "#2a9fb0", "unattributed": "#757575", "cache": "#a89f91",
}  # fmt: skip
NO_VARIABLES = ("unattributed", "cache")  # nothing is below these
MOST = 1_500  # boxes of a treemap: the browser draws no more of them in time
ROOT = "rank"


def boxes(found: Holdings, rank: int) -> dict[str, Any]:
    """The boxes of a treemap, column by column.

    Kinds are the first level, variables and paths of modules below. Small boxes are left out,
    and drawn as the rest of what they are in.
    """
    root, sizes = f"{ROOT} {rank}", by_kind(found)
    rows: list[tuple[str, str, str, int, str, str]] = []
    for kind, size in sizes.items():
        if size:
            rows.append((f"{root}/{kind}", kind, root, size, kind, kind))
    chosen = sorted(
        (node for node, size in enumerate(found.bytes) if size > 0),
        key=lambda node: -found.bytes[node],
    )[:MOST]
    paths, there = found.paths, set(chosen)
    for node in sorted(chosen):
        parent, kind = found.parents[node], found.kinds[node]
        if (parent >= 0 and parent not in there) or kind in NO_VARIABLES:
            continue
        above = f"{root}/{kind if parent < 0 else parent}"
        told = [paths[node]]
        if found.shapes[node] is not None:
            told.append(f"{found.types[node]} {found.shapes[node]}")
        if found.shared[node]:
            told.append(f"and {format_bytes(found.shared[node])} that count elsewhere")
        size = found.bytes[node]
        rows.append((f"{root}/{node}", found.labels[node], above, size, kind, "<br>".join(told)))
    columns = [list(each) for each in zip(*rows, strict=True)] or [[]] * 6
    ids, labels, parents, values, kinds, told = columns
    return {
        "ids": [root, *ids],
        "labels": [root, *labels],
        "parents": ["", *parents],
        "values": [sum(sizes.values()), *values],
        "marker": {"colors": ["rgba(0, 0, 0, 0)", *(COLOURS[kind] for kind in kinds)]},
        "text": [format_bytes(size) for size in (sum(sizes.values()), *values)],
        "customdata": [root, *told],
    }


def treemap(found: Holdings, rank: int) -> Any:
    """The boxes as a figure."""
    figure = go.Figure(go.Treemap(**TREEMAP), LAYOUT)
    figure.data[0].update(**boxes(found, rank))
    return figure


def by_kind(found: Holdings) -> dict[str, int]:
    """Bytes by kind of the variable that they are under; they fill the pool of MLX."""
    sizes = dict.fromkeys(COLOURS, 0)
    for node, parent in enumerate(found.parents):
        if parent < 0:
            sizes[found.kinds[node]] += found.bytes[node]
    return sizes


class HoldingsPanel:
    """The panel.

    Parameters
    ----------
    memory
        Whose memory.
    ask
        Runs a command.
    """

    title = "What holds it"

    def __init__(self, memory: Memory, ask: Ask) -> None:
        self._memory, self._ask = memory, ask
        self.ranks = ui.Dropdown(options=self._options(), layout={"width": "8em"})
        self.ranks.observe(lambda _change: self._look(), "value")
        self.said, self.tables, self.changes = ui.HTML(), ui.HTML(), ui.HTML()
        self.since = ui.Dropdown(options=[], layout={"width": "14em"})
        self.shown = -1  # the rank whose memory is drawn
        self._place = ui.VBox([])
        self._figure: Any = None
        self.widget = ui.VBox(
            [
                row(
                    self.ranks,
                    button("Look", self._look, "search", "Find what holds this rank's memory now"),
                ),
                self.said,
                self._place,
                self.tables,
                row(
                    button("What grew since", self._compare, tooltip="Since the end of this cell"),
                    self.since,
                ),
                self.changes,
            ]
        )

    def show(self, opened: bool) -> None:
        """Look, where it was opened just now."""
        if len(self.ranks.options) != self._memory.size:
            self.ranks.options = self._options()
        if self._figure is None:
            self._figure = go.FigureWidget(layout=LAYOUT)
            self._figure._config = {"displaylogo": False, "responsive": True}
            self._place.children = [self._figure]
        if opened:
            self._look()

    def _options(self) -> list[tuple[str, int]]:
        return [(f"rank {rank}", rank) for rank in range(self._memory.size)]

    def _look(self) -> None:
        if self._figure is not None:
            self._ask("looking at what holds memory", self._draw)

    def _draw(self) -> None:
        rank = int(self.ranks.value)
        found = self._memory.look(rank)
        drawn = boxes(found, rank)
        with self._figure.batch_update():
            if not self._figure.data:
                self._figure.add_trace(go.Treemap(**TREEMAP))
            self._figure.data[0].update(**drawn)
        sizes = [f"{kind} {format_bytes(size)}" for kind, size in by_kind(found).items() if size]
        more = [line for line in (waiting(found), *found.stopped) if line]
        stopped = "".join(f"<div>{escape(each)}</div>" for each in more)
        when = f"rank {rank} at {time.strftime('%H:%M:%S')}"
        self.said.value = f"<div>{escape(' · '.join([when, *sizes]))}</div>{stopped}"
        self.tables.value = freeable_table(found)._repr_html_()
        names = [name for name, _ in reversed(self._memory.looks(rank))]
        self.since.options = list(dict.fromkeys(names))
        self.since.value = names[0] if names else None
        self.shown = rank

    def _compare(self) -> None:
        self._ask("comparing", self._compared)

    def _compared(self) -> None:
        if self.since.value is None:
            raise UsageError("no cell has ended since the view was opened: run one, then look")
        found = self._memory.grew(int(self.ranks.value), self.since.value)
        self.changes.value = grown_table(found)._repr_html_()


LAYOUT = {
    "height": 420,
    "margin": {"l": 0, "r": 0, "t": 24, "b": 0},
    "paper_bgcolor": "rgba(0, 0, 0, 0)",
    "font": {"color": "#808080", "size": 12},
    "uniformtext": {"minsize": 9, "mode": "hide"},
}
TREEMAP = {
    "branchvalues": "total",
    "maxdepth": 6,
    "hovertemplate": "%{customdata}<br>%{text}<extra></extra>",
    "texttemplate": "%{label}<br>%{text}",
    "pathbar": {"visible": True},
    "tiling": {"pad": 1},
    "marker": {"line": {"width": 1, "color": "rgba(128, 128, 128, 0.9)"}},
}
