"""Where the time of a generation goes, by rank: a table, and bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlxbench_kernel.models.timing import PHASES, Split
from mlxbench_kernel.widgets.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

PARTS = {"compute": "#4c78a8", "transfer": "#f58518", "waiting": "#bab0ac"}
NAMES = {
    "compute": "computing", "transfer": "in collectives", "waiting": "waiting for the last rank",
}  # fmt: skip


class Timing:
    """Where the time of a generation goes.

    Parameters
    ----------
    rows
        By rank and phase.

    Attributes
    ----------
    rows : list of Split
        In seconds.
    """

    def __init__(self, rows: Sequence[Split]) -> None:
        self.rows = list(rows)

    @property
    def table(self) -> Table:
        """Milliseconds: of the whole prompt, and of a token of the others."""
        rows = []
        for phase in PHASES:
            for each in (row for row in self.rows if row.phase == phase):
                scale = 1000 / max(each.tokens if phase == "decode" else 1, 1)
                parts = (each.seconds, each.compute, each.collectives, each.waiting, each.transfer)
                share = each.collectives / each.seconds if each.seconds else 0.0
                rows.append(
                    (
                        f"{phase}, {each.tokens:,} tokens", str(each.rank),
                        *(_figure(scale * part) for part in parts),
                        "–" if share != share else f"{100 * share:.0f} %",
                    )
                )  # fmt: skip
        header = (
            "phase", "rank", "ms", "computing", "in collectives", "of these waiting",
            "of these transfer", "share in collectives",
        )  # fmt: skip
        said = "ms of the whole prompt, and per token of decode; .figure() draws it"
        if any(row.collectives != row.collectives for row in self.rows):
            said += "; –: collectives run on the GPU; lm.graph(profile=True) measures them"
        return Table(header, rows, said)

    def to_dataframe(self) -> DataFrame:
        """A row for each rank and phase, in seconds."""
        import pandas

        more = ({"compute": row.compute, "transfer": row.transfer} for row in self.rows)
        return pandas.DataFrame(
            [{**asdict(row), **added} for row, added in zip(self.rows, more, strict=True)]
        )

    def figure(self) -> Figure:
        """Bars of a token of decode, by rank."""
        import plotly.graph_objects as go

        rows = [row for row in self.rows if row.phase == "decode"]
        bars = [
            go.Bar(
                x=[f"rank {row.rank}" for row in rows],
                y=[1000 * getattr(row, name) / max(row.tokens, 1) for row in rows],
                name=NAMES[name], marker={"color": colour},
            )
            for name, colour in PARTS.items()
        ]  # fmt: skip
        layout = {
            "barmode": "stack", "height": 320, "yaxis": {"title": "ms per token"},
            "paper_bgcolor": "rgba(0, 0, 0, 0)", "plot_bgcolor": "rgba(0, 0, 0, 0)",
            "font": {"color": "#808080"},
        }  # fmt: skip
        return go.Figure(bars, layout=layout)

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def _figure(value: float) -> str:
    return "–" if value != value else f"{value:.3g}"
