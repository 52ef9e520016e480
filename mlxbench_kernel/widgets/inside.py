"""What is inside of a language model, for a person: tables, heat maps, data frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.activations import Activations
from mlxbench_kernel.models.attention import Attention
from mlxbench_kernel.models.likely import Likely
from mlxbench_kernel.widgets.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

ROWS = 200  # of a table that is shown
DRAWN_BYTES = 8_000_000  # of maps that go to the browser with a figure
GREY = "#808080"  # readable on white and on black


class TopK:
    """The likeliest next tokens at each position, as a table; ● marks the one that follows.

    Parameters
    ----------
    found
        What the ranks have told.

    Attributes
    ----------
    found : Likely
        The numbers, as arrays.
    """

    def __init__(self, found: Likely) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found.tokens)

    @property
    def table(self) -> Table:
        """What is shown."""
        found, k = self.found, self.found.ids.shape[1]
        rows = []
        for row in range(min(len(self), ROWS)):
            place, chance = int(found.places[row]), float(found.chances[row])
            cells = [
                f"{'● ' if place == column + 1 else ''}{quoted(found.choices[row][column])} "
                f"{percent(float(found.probabilities[row, column]))}"
                for column in range(k)
            ]
            follows = f"{quoted(found.actual[row])} {percent(chance)}, no. {place:,}"
            head = (str(found.first + row), quoted(found.texts[row]), follows if place else "")
            rows.append((*head, *cells))
        more = len(self) - len(rows)
        caption = f"{more:,} more rows: .to_dataframe() has all" if more else ""
        header = ("position", "token", "what follows", *(str(1 + n) for n in range(k)))
        return Table(header, rows, caption)

    def to_dataframe(self) -> DataFrame:
        """A row for each position.

        Columns: ``position``, ``token``, ``next``, ``next_place`` (1 for the likeliest),
        ``next_probability``, and ``token_1``, ``probability_1``, ….
        """
        import pandas

        found, last = self.found, self.found.places == 0
        columns: dict[str, Any] = {
            "position": found.first + np.arange(len(self)),
            "token": found.texts,
            "next": [None if ends else text for text, ends in zip(found.actual, last, strict=True)],
            "next_place": found.places,
            "next_probability": found.chances,
        }
        for column in range(found.ids.shape[1]):
            columns[f"token_{column + 1}"] = [row[column] for row in found.choices]
            columns[f"probability_{column + 1}"] = found.probabilities[:, column]
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


class _Map:
    """An array of a layer that is shown as a figure, and is an array for NumPy."""

    values: NDArray[np.float32]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def figure(self) -> Figure:
        """What is shown."""
        raise NotImplementedError

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        drawn = json.loads(self.figure().to_json())
        return {"application/vnd.plotly.v1+json": drawn, "text/plain": repr(self)}


class AttentionMaps(_Map):
    """The attention of a layer; a heat map of a head, or of the mean, is chosen in the figure.

    Parameters
    ----------
    found
        What the ranks have told.

    Attributes
    ----------
    found : Attention
        Layer, heads, tokens and weights.
    values : float32 [heads, L, L]
        The weights; also what NumPy takes this for.
    """

    def __init__(self, found: Attention) -> None:
        self.found, self.values = found, found.values

    def __repr__(self) -> str:
        heads, length, _ = self.values.shape
        return f"attention of layer {self.found.layer}: {heads} heads, {length:,} tokens"

    def figure(self, heads: Sequence[int] | None = None) -> Figure:
        """Heat maps, one of which is seen.

        Parameters
        ----------
        heads
            Their numbers; by default all, or as many as go to a browser in a moment.

        Raises
        ------
        UsageError
            One is not there.
        """
        import plotly.graph_objects as go

        found = self.found
        for head in heads or ():
            if head not in found.heads:
                raise UsageError(f"head {head} was not asked for: there are {list(found.heads)}")
        most = max(DRAWN_BYTES // max(self.values[0].nbytes, 1) - 1, 1)
        chosen = list(found.heads[:most] if heads is None else heads)
        maps = {f"head {head}": self.values[found.heads.index(head)] for head in chosen}
        if len(chosen) > 1 and heads is None:
            maps = {"mean of all heads": self.values.mean(axis=0), **maps}
        title = f"attention of layer {found.layer}"
        if len(chosen) < len(found.heads) and heads is None:
            title += f", heads {chosen[0]} to {chosen[-1]}; figure(heads=[…]) shows others"
        rows, columns = labels(found.texts), labels(found.texts)
        if self.values.shape[2] != len(columns):
            columns = [str(number) for number in range(self.values.shape[2])]
        traces = [
            go.Heatmap(
                z=values, name=name, visible=number == 0, colorscale="Viridis", zmin=0,
                hovertemplate="%{y} attends to %{x}<br>%{z:.4f}<extra>" + name + "</extra>",
            )
            for number, (name, values) in enumerate(maps.items())
        ]  # fmt: skip
        buttons = [
            {"label": name, "method": "update",
             "args": [{"visible": [number == other for other in range(len(maps))]}]}
            for number, name in enumerate(maps)
        ]  # fmt: skip
        figure = go.Figure(traces, layout=_layout(title))
        figure.update_layout(
            updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02,
                          "yanchor": "bottom"}],
        )  # fmt: skip
        _name_axes(figure, rows, columns, "attends to", "token")
        figure.update_yaxes(autorange="reversed")
        return figure


class ActivationMap(_Map):
    """What comes out of a layer or a module, as a heat map.

    Parameters
    ----------
    found
        What the ranks have told.

    Attributes
    ----------
    found : Activations
        Layer, module, tokens and values.
    values : float32 [L, …]
        The values; also what NumPy takes this for.
    """

    def __init__(self, found: Activations) -> None:
        self.found, self.values = found, found.values

    def __repr__(self) -> str:
        what = self.found.what if self.found.what != "hidden" else "output"
        return f"{what} of layer {self.found.layer}: float32 {list(self.values.shape)}"

    def figure(self) -> Figure:
        """A heat map of tokens by dimensions, or of the tokens' norms where that is too much."""
        import plotly.graph_objects as go

        flat = self.values.reshape(len(self.values), -1)
        names = labels(self.found.texts)
        if flat.nbytes > DRAWN_BYTES or len(flat) != len(names):
            norms = np.linalg.norm(flat, axis=1)
            figure = go.Figure(go.Scatter(y=norms), layout=_layout(f"{self!r}: norm"))
            figure.update_xaxes(title="position")
            return figure
        most = float(np.abs(flat).max(initial=0.0)) or 1.0
        drawn = go.Heatmap(
            z=flat, colorscale="RdBu", zmin=-most, zmax=most,
            hovertemplate="%{y}, dimension %{x}<br>%{z:.4g}<extra></extra>",
        )  # fmt: skip
        figure = go.Figure(drawn, layout=_layout(repr(self)))
        figure.update_xaxes(title="dimension")
        _name_rows(figure, names)
        return figure


def quoted(text: str) -> str:
    """A token so that its spaces and line ends are seen."""
    return repr(text)


def percent(chance: float) -> str:
    """A probability."""
    return f"{100 * chance:.3g} %"


def labels(texts: Sequence[str]) -> list[str]:
    """Tokens with their positions, so that equal ones have places of their own."""
    return [f"{place} {quoted(text)}" for place, text in enumerate(texts)]


def _layout(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 14}}, "height": 560,
        "paper_bgcolor": "rgba(0, 0, 0, 0)", "font": {"color": GREY, "size": 12},
        "margin": {"l": 90, "r": 20, "t": 80, "b": 80},
    }  # fmt: skip


def _name_axes(
    figure: Figure, rows: Sequence[str], columns: Sequence[str], across: str, down: str
) -> None:
    figure.update_traces(x=columns)
    figure.update_xaxes(title=across, type="category")
    _name_rows(figure, rows)
    figure.update_yaxes(title=down)


def _name_rows(figure: Figure, rows: Sequence[str]) -> None:
    figure.update_traces(y=rows)
    figure.update_yaxes(type="category", autorange="reversed")
