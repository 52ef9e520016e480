"""What ranks held over time, for others: a data frame, a CSV file, an HTML page of its own."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

import mlxbench_kernel
from mlxbench_kernel.memory.record import COLUMNS, PRESSURES
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.widgets.memory_tables import limits, status

if TYPE_CHECKING:
    from pandas import DataFrame

POINTS = 4_000  # of a curve in the page, at most
STYLE = (
    "body { font-family: sans-serif; margin: 2em; max-width: 70em } "
    "table { margin: 1em 0 } h2 { margin-top: 2em }"
)
CURVES = {"active": "MLX active", "cache": "MLX cache", "footprint": "footprint"}


def to_dataframe(memory: Memory) -> DataFrame:
    """All samples, a row each: ``rank``, ``host``, and the columns of `memory.record.COLUMNS`.

    ``time`` is a date (UTC), ``pressure`` a word, and ``cell`` the name of the cell that ran;
    everything else is bytes, NaN where the system does not tell.
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
            figures.append(_figure(f"rank {each.rank} · {each.host}", rows, each.marks))
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
    file.write_text(f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>")


def _figure(title: str, rows: Any, marks: Any) -> Any:
    chosen = thinned(rows[:, COLUMNS.index("footprint")])
    times = (rows[chosen, 0] * 1000).astype("datetime64[ms]")
    figure = go.Figure(layout={"title": title, "height": 320, "yaxis": {"ticksuffix": "B"}})
    for name, called in CURVES.items():
        stack = {"stackgroup": "mlx"} if name != "footprint" else {"line": {"dash": "dash"}}
        values = rows[chosen, COLUMNS.index(name)]
        figure.add_scatter(x=times, y=values, name=called, mode="lines", **stack)
    last = rows[-1, 0]
    for mark in marks:
        end = last if mark.lasts else mark.end
        if end >= rows[0, 0] and mark.begin <= last:
            begin, end = ((at * 1000) for at in (max(mark.begin, rows[0, 0]), end))
            figure.add_vrect(
                x0=begin, x1=end, line_width=0, opacity=0.15,
                fillcolor="grey" if mark.kind == "cell" else "purple",
                annotation_text=mark.name, annotation_position="top left",
            )  # fmt: skip
    return figure


def thinned(values: Any) -> Any:
    """Places of at most so many values, the lowest and the highest of each part among them."""
    parts = max(len(values) // (POINTS // 2), 1)
    if parts == 1:
        return np.arange(len(values))
    whole = values[: len(values) // parts * parts].reshape(-1, parts)
    base = np.arange(len(whole)) * parts
    both = np.concatenate([base + whole.argmin(1), base + whole.argmax(1), [len(values) - 1]])
    return np.unique(both)
