"""What is known of graphs, as views of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph import Explorer, Graph, GraphDiff, Profile, agreement
from mlxbench_kernel.training.origin import StepGraph
from mlxbench_kernel.widgets.graph_view import GraphView


def view_of_graph(graph: Graph, focus: int | None = None, note: str = "") -> GraphView:
    """A graph, with the outer groups open.

    Parameters
    ----------
    graph
        The graph.
    focus
        A node that is selected and in sight at first.
    note
        One more sentence for the summary.
    """
    return GraphView(Explorer(graph, note=note), focus=focus)


def view_of_ranks(graphs: Mapping[int, Graph]) -> GraphView:
    """The graphs of several ranks: one of them where they are equal, else what differs.

    Parameters
    ----------
    graphs
        By rank.
    """
    said, merged = agreement(graphs)
    if merged is not None:
        return view_of_states(*merged, note=said)
    first = next(iter(graphs))
    return view_of_graph(graphs[first], note=said or f"rank {first}")


def view_of_step(found: StepGraph) -> GraphView:
    """The graph of a training step; where NaN begins is selected and in sight."""
    assert found.graph is not None
    return view_of_graph(found.graph, found.node, f"step {found.step}, rank {found.rank} alone")


def view_of_profile(profile: Profile, focus: int | None = None, note: str = "") -> GraphView:
    """A graph coloured by the time that its operations took; otherwise as `view_of_graph`."""
    return GraphView(Explorer(profile.graph, {"time": profile.seconds}, note=note), focus=focus)


def view_of_states(graph: Graph, states: NDArray[np.int8], note: str = "") -> GraphView:
    """Two graphs in one, with what was added, removed and changed in colours.

    The first difference is in sight.

    Parameters
    ----------
    graph, states
        From `GraphDiff.merged`.
    note
        One more sentence for the summary.
    """
    different = np.flatnonzero((states != 0) & (graph.primitive != 0))
    focus = int(different[0]) if len(different) else None
    return GraphView(Explorer(graph, states=states, note=note), focus=focus)


def view_of_diff(difference: GraphDiff) -> GraphView:
    """The difference of two graphs."""
    return view_of_states(*difference.merged(), note=difference.summary)
