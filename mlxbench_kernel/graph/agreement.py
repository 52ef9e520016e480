"""Whether ranks would compute the same, from the graphs that they captured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.collective_order import (
    collectives,
    crossed,
    difference_of,
    of_all_ranks,
    with_messages,
)
from mlxbench_kernel.graph.diff import diff
from mlxbench_kernel.graph.messages import message_fault
from mlxbench_kernel.graph.model import Graph


def agreement(
    graphs: Mapping[int, Graph],
) -> tuple[str, tuple[Graph, NDArray[np.int8]] | None]:
    """Compare the graphs of ranks with that of the first one.

    The collectives of each rank are put in the order in which MLX would evaluate the outputs of
    its graph. Those in which all take part have to be the same, in the same order; sends and
    receives have to find one another, see `messages.message_fault` for what is not known of them.

    Parameters
    ----------
    graphs
        By rank.

    Returns
    -------
    said
        One line: that they agree, or where the first difference is; "" for a single rank. Ranks
        whose collectives differ would wait for one another: that is said first.
    merged
        Where the graphs differ, both in one with a `State` of each node, as `GraphDiff.merged`
        gives them; None where they are equal.
    """
    first, *others = graphs
    if not others:
        return "", None
    found = {rank: diff(graphs[first], graphs[rank]) for rank in others}
    different = [rank for rank in others if not found[rank].equal]
    merged = None
    if different:
        graph, states = found[different[0]].merged()
        where = f"removed: only on rank {first}, added: only on rank {different[0]}"
        merged = graph.with_(hint=" · ".join(filter(None, (graph.hint, where)))), states
    if trouble := _trouble(graphs):
        return f"the ranks do not agree: {trouble}", merged
    if not different:
        ranks = ", ".join(map(str, graphs))
        nodes, count = graphs[first].nodes, len(collectives(graphs[first]))
        said = f"{count:,} collective{'' if count == 1 else 's'}"
        if not all(graph.complete for graph in graphs.values()):
            said += "; only names and edges are compared: shapes need the native module"
        return f"ranks {ranks} agree: {nodes:,} nodes, {said}", None
    rank = different[0]
    said = f"rank {first} and rank {rank} differ: {found[rank].summary}; their collectives agree"
    return said, merged


def _trouble(graphs: Mapping[int, Graph]) -> str:
    """Where ranks would wait for one another, or take for their own what is another's; or ""."""
    first, *others = graphs
    sequences = {rank: with_messages(graph) for rank, graph in graphs.items()}
    of_all = {rank: of_all_ranks(graphs[rank], nodes) for rank, nodes in sequences.items()}
    known = all(graph.complete for graph in graphs.values())
    for look in (difference_of, crossed):
        for other in others:
            apart = look(
                graphs[first],
                of_all[first],
                graphs[other],
                of_all[other],
                (f"rank {first}", f"rank {other}"),
            )
            if apart is not None:
                return apart.text
        if look is difference_of and known and (fault := message_fault(graphs, sequences)):
            return fault.text
    return ""
