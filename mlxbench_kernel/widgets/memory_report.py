"""What ranks held over time, for others: a data frame, a CSV file, an HTML page of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

import mlxbench_kernel
from mlxbench_kernel.memory.record import COLUMNS, PRESSURES, Mark, Samples
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.widgets.memory_tables import limits, status

if TYPE_CHECKING:
    from pandas import DataFrame

POINTS = 4_000  # of a curve in the page, at most
STYLE = (
    "body { font-family: sans-serif; margin: 2em; max-width: 70em } "
    "table { margin: 1em 0 } h2 { margin-top: 2em }"
)
BANDS = {"cell": "rgba(128, 128, 128, 0.2)", "mark": "rgba(138, 111, 209, 0.2)"}
BYTES = {"ticksuffix": "B", "exponentformat": "SI"}  # else a billion is a B too
LAYOUT = {
    "height": 320,
    "barmode": "overlay",
    "uniformtext": {"minsize": 9, "mode": "hide"},  # names for which there is no room
    "yaxis": {"range": [0, 1], "visible": False, "fixedrange": True},
    "yaxis2": {"overlaying": "y", "side": "left", "rangemode": "tozero", **BYTES},
}
CURVES = {"active": "MLX active", "cache": "MLX cache", "footprint": "footprint"}


def to_dataframe(memory: Memory) -> DataFrame:
    """All samples, a row each: ``rank``, ``host``, and the columns of `memory.record.COLUMNS`.

    ``time`` is a date (UTC), ``pressure`` a word, ``step`` the number of a stepper's step, and
    ``cell`` the name of the cell that ran; everything else is bytes, NaN where the system does not
    tell.
    """
    import pandas

    frames = []
    for each in memory.feed.ranks:
        _, rows = each.ring.since(0)
        frame = pandas.DataFrame(rows, columns=list(COLUMNS))
        frame["time"] = pandas.to_datetime(frame["time"], unit="s", utc=True)
        frame["pressure"] = [_word(PRESSURES, value) for value in frame["pressure"]]
        names = {mark.number: mark.name for mark in each.marks if mark.kind == "cell"}
        frame["cell"] = [names.get(int(x)) if x == x else None for x in frame["cell"]]
        frame.insert(0, "rank", each.rank)
        frame.insert(1, "host", each.host)
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)


def _word(words: tuple[str, ...], value: float) -> str | None:
    return words[int(value)] if value == value else None


def to_csv(memory: Memory, file: Path) -> None:
    """Write `to_dataframe` as CSV."""
    to_dataframe(memory).to_csv(file, index=False)


def to_html(memory: Memory, file: Path) -> None:
    """Write a page that needs nothing else: pools, limits, and what each rank held over time."""
    figures = []
    for each in memory.feed.ranks:
        _, rows = each.ring.since(0)
        if len(rows):
            figures.append(figure_of(f"rank {each.rank} · {each.host}", rows, each.marks))
    plots = [
        figure.to_html(full_html=False, include_plotlyjs=place == 0)
        for place, figure in enumerate(figures)
    ]
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    body = [
        f"<h1>Memory of {memory.size} rank{'s'[: memory.size != 1]}</h1>",
        f"<p>{escape(when)}, mlxbench {mlxbench_kernel.__version__}</p>",
        f"<h2>Pools</h2>{status(memory)._repr_html_()}",
        f"<h2>Limits</h2>{limits(memory)._repr_html_()}",
        "<h2>Over time</h2>",
        *plots,
    ]
    head = f'<meta charset="utf-8"><title>Memory</title><style>{STYLE}</style>'
    page = f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>"
    file.write_text(page, encoding="utf-8")  # as it says itself, whatever the system's is


def figure_of(title: str, rows: Samples, marks: Sequence[Mark]) -> Any:
    """What a rank held over time, with its cells and marks; rows are float64 [n, columns]."""
    chosen = thinned(rows[:, COLUMNS.index("footprint")])
    times = (rows[chosen, 0] * 1000).astype("datetime64[ms]")
    figure = go.Figure(_bands(marks, rows[0, 0], rows[-1, 0]), {**LAYOUT, "title": title})
    for name, called in CURVES.items():
        stack = {"stackgroup": "mlx"} if name != "footprint" else {"line": {"dash": "dash"}}
        values = rows[chosen, COLUMNS.index(name)]
        figure.add_scatter(x=times, y=values, name=called, mode="lines", yaxis="y2", **stack)
    return figure


def _bands(marks: Sequence[Mark], first: float, last: float) -> list[Any]:
    """Cells, and what was marked, as bars behind the curves: one trace of each, as a shape for
    each of thousands takes plotly minutes to add and the browser long to draw."""
    traces = []
    for kind, colour in BANDS.items():
        there = [
            (max(mark.begin, first), last if mark.lasts else min(mark.end, last), mark.name)
            for mark in marks
            if mark.kind == kind and mark.begin <= last and (mark.lasts or mark.end >= first)
        ]
        if there:
            begins, ends, names = zip(*there, strict=True)
            middles = (np.array(begins) + np.array(ends)) * 500
            traces.append(
                go.Bar(
                    x=middles.astype("datetime64[ms]"), y=[1] * len(names), text=names,
                    width=(np.array(ends) - np.array(begins)) * 1000, marker={"color": colour},
                    name=f"{kind}s", hovertemplate="%{text}<extra></extra>", textangle=0,
                    textposition="inside", insidetextanchor="end", textfont={"color": "#555"},
                )
            )  # fmt: skip
    return traces


def thinned(values: Any) -> Any:
    """Places of at most so many values, the lowest and the highest of each part among them."""
    parts = max(len(values) // (POINTS // 2), 1)
    if parts == 1:
        return np.arange(len(values))
    whole = values[: len(values) // parts * parts].reshape(-1, parts)
    base = np.arange(len(whole)) * parts
    both = np.concatenate([base + whole.argmin(1), base + whole.argmax(1), [len(values) - 1]])
    return np.unique(both)
