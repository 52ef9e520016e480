"""Shows what was measured of a language model: a table, a plot, and what it ran on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from IPython.display import display

from mlxbench_kernel.models.measuring import FIGURES
from mlxbench_kernel.remote.benchmark import Benchmark
from mlxbench_kernel.widgets.table import Table

TITLES = {
    "prompt_tps": "prompt, tokens/s",
    "generation_tps": "generation, tokens/s",
    "peak_memory": "peak memory, GB",
    "total_time": "total, s",
}


class MeasuredModel(Benchmark):
    """A `Benchmark` that a notebook shows."""

    def table(self) -> Table:
        """The mean of each figure, by sharding, with the least and the most."""
        rows = []
        for way, means in self.means.items():
            runs = [row for row in self.rows if row["shard"] == way]
            cells = [_spread(means[name], [row[name] for row in runs]) for name in FIGURES]
            rows.append([way, str(len(runs)), *cells])
        return Table(["sharding", "runs", *TITLES.values()], rows, " · ".join(self._said()))

    def _said(self) -> Iterator[str]:
        prompts = f"{self.batch} prompts" if self.batch > 1 else "prompt"
        yield f"{self.model} ({self.architecture}), {prompts} of {self.prompt} random tokens"
        yield f"{self.generate} generated"
        yield "mean (least to most)"
        for name, value in self.about.items():
            yield f"{name} {value}"
        for way, reason in self.failed.items():
            yield f"{way} was not measured: {reason}"
        if self.interrupted:
            yield "interrupted: what had ended until then"
        for command in self.commands.values():
            yield f"with mlx-lm: {command}"

    def plot(self) -> Any:
        """A ``plotly.graph_objects.Figure``: each run as a point, the means as bars."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        names = FIGURES[:3]
        figure = make_subplots(1, len(names), subplot_titles=[TITLES[name] for name in names])
        means = self.means
        for column, name in enumerate(names, 1):
            bars = go.Bar(
                x=list(means), y=[each[name] for each in means.values()], opacity=0.5, name="mean"
            )
            points = go.Scatter(
                x=[row["shard"] for row in self.rows], y=[row[name] for row in self.rows],
                mode="markers", name="run",
            )  # fmt: skip
            figure.add_traces([bars, points], rows=1, cols=column)
        figure.update_layout(
            height=320, showlegend=False, margin={"t": 40, "b": 30, "l": 50, "r": 20},
            paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": "#808080"},
        )  # fmt: skip
        figure.update_yaxes(rangemode="tozero", gridcolor="rgba(128,128,128,0.3)")
        return figure

    def __repr__(self) -> str:
        return repr(self.table())

    def _ipython_display_(self) -> None:
        display(self.table())
        if self.rows:
            display(self.plot())


def _spread(mean: float, values: list[float]) -> str:
    return f"{mean:.4g} ({min(values):.4g} to {max(values):.4g})"
