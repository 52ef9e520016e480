"""What is known of graphs, as views of them."""

from __future__ import annotations

from mlxbench_kernel.graph import Explorer, Graph, GraphDiff, Profile
from mlxbench_kernel.widgets.graph_view import GraphView


def view_of_graph(graph: Graph) -> GraphView:
    """A graph, with the outer groups open."""
    return GraphView(Explorer(graph))


def view_of_diff(difference: GraphDiff) -> GraphView:
    """Two graphs in one, with what was added, removed and changed in colours."""
    merged, states = difference.merged()
    return GraphView(Explorer(merged, states=states, note=difference.summary))


def view_of_profile(profile: Profile, graph: Graph | None = None) -> GraphView:
    """A graph coloured by the time that its operations took.

    Parameters
    ----------
    profile
        What was measured.
    graph
        The same graph with modules and names, where there is one.
    """
    return GraphView(Explorer(graph or profile.graph, {"time": profile.seconds}))
