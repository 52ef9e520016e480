"""What ranks held over time, for others: a data frame, a CSV file, an HTML page of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

import mlxbench_kernel
from mlxbench_kernel.errors import BenchError
from mlxbench_kernel.memory import Holdings
from mlxbench_kernel.memory.record import COLUMNS, PRESSURES, Mark, Samples
from mlxbench_kernel.remote.bar import Bar
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.remote.pool_bars import bars
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets.memory_holdings import treemap
from mlxbench_kernel.widgets.memory_tables import freeable_table, limits, status

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
POOLS = {
    "barmode": "stack", "bargap": 0.3, "margin": {"t": 10, "b": 110}, "xaxis": BYTES,
    "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
}  # fmt: skip
SEGMENTS = {
    "system": "system", "others": "other programs", "active": "MLX active", "cache": "MLX cache",
    "rest": "rest of footprint", "held": "held until it died", "free": "free",
}  # fmt: skip
# As in the view: of ranks, and of what is nobody's.
RANKS = ["#3b82c4", "#e0702a", "#2a9d5c", "#c2559d", "#8a6fd1", "#a98500", "#2a9fb0", "#d14b4b"]
COLOURS = {"system": "#757575", "others": "#a89f91", "free": "#eeeeee"}
OPACITY = {"cache": 0.55, "rest": 0.25, "held": 0.25}
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
    """Write a page that needs nothing else: pools, limits, and what each rank held over time, and
    holds."""
    pools = pools_figure(bars(memory.feed.ranks, memory.markers))
    plots, ends = [], []
    for each in memory.feed.ranks:
        _, rows = each.ring.since(0)
        if len(rows):
            plots.append(figure_of(f"rank {each.rank} · {each.host}", rows, each.marks))
            ends += [rows[0, 0], rows[-1, 0]]
    for figure in plots:  # side by side in time
        figure.update_xaxes(range=_dates(np.array([min(ends), max(ends)])))
    held = _holdings(memory)
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    body = [
        f"<h1>Memory of {memory.size} rank{'s'[: memory.size != 1]}</h1>",
        f"<p>{escape(when)}, mlxbench {mlxbench_kernel.__version__}</p>",
        f"<h2>Pools</h2>{pools.to_html(full_html=False)}{status(memory)._repr_html_()}",
        f"<h2>Limits</h2>{limits(memory)._repr_html_()}",
        "<h2>Over time</h2>",
        *map(_within, plots),
    ]
    for rank in range(memory.size):
        body.append(f"<h2>What holds the memory of rank {rank}</h2>")
        if rank in held:
            body += [_within(treemap(held[rank], rank)), freeable_table(held[rank])._repr_html_()]
        else:
            body.append("<p>not known: it did not answer</p>")
    head = f'<meta charset="utf-8"><title>Memory</title><style>{STYLE}</style>'
    page = f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>"
    file.write_text(page, encoding="utf-8")  # as it says itself, whatever the system's is


def _holdings(memory: Memory) -> dict[int, Holdings]:
    """What holds the memory of the ranks that answer."""
    found = {}
    for each in [] if memory.feed.closed else list(memory.feed.ranks):
        with suppress(BenchError):  # it is gone, or busy with something that does not end
            found[each.rank] = memory.look(each.rank)
    return found


def _within(figure: Any) -> str:
    """A figure after the first, which has brought the script."""
    html: str = figure.to_html(full_html=False, include_plotlyjs=False)
    return html


def pools_figure(pools: Sequence[Bar]) -> Any:
    """A bar for each pool, stacked of what is in it."""
    figure = go.Figure(layout=POOLS | {"height": 160 + 50 * len(pools)})
    named: set[str] = set()
    for bar in reversed(pools):
        for each in bar.segments:
            whose = f"rank {each.rank}, " if each.rank >= 0 else ""
            name = f"{whose}{SEGMENTS[each.kind]}"
            colour = COLOURS.get(each.kind) or RANKS[each.rank % len(RANKS)]
            figure.add_bar(
                y=[f"{bar.host} {bar.pool}"], x=[each.bytes], orientation="h", name=name,
                legendgroup=name, showlegend=name not in named, opacity=OPACITY.get(each.kind, 1),
                marker={"color": colour}, hovertemplate=f"{name}: {format_bytes(each.bytes)}",
            )  # fmt: skip
            named.add(name)
    return figure


def _dates(times: Any) -> Any:
    """Unix times as plotly takes them."""
    return (times * 1000).astype("datetime64[ms]")


def figure_of(title: str, rows: Samples, marks: Sequence[Mark]) -> Any:
    """What a rank held over time, with its cells and marks; rows are float64 [n, columns]."""
    chosen = thinned(rows[:, COLUMNS.index("footprint")])
    times = _dates(rows[chosen, 0])
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
