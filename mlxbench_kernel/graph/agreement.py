"""Whether ranks would compute the same, from the graphs that they captured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.collective_order import collectives, first_collective_difference
from mlxbench_kernel.graph.diff import diff
from mlxbench_kernel.graph.model import Graph


def agreement(
    graphs: Mapping[int, Graph],
) -> tuple[str, tuple[Graph, NDArray[np.int8]] | None]:
    """Compare the graphs of ranks with that of the first one.

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
        Where they differ, both graphs in one with a `State` of each node, as `GraphDiff.merged`
        gives them; None where they agree.
    """
    first, *others = graphs
    if not others:
        return "", None
    found = {rank: diff(graphs[first], graphs[rank]) for rank in others}
    different = [rank for rank in others if not found[rank].equal]
    count = len(collectives(graphs[first]))
    if not different:
        ranks = ", ".join(map(str, graphs))
        nodes = graphs[first].nodes
        said = f"{count:,} collective{'' if count == 1 else 's'}"
        return f"ranks {ranks} agree: {nodes:,} nodes, {said}", None
    rank = different[0]
    merged, states = found[rank].merged()
    labels = (f"rank {first}", f"rank {rank}")
    for other in different:
        apart = first_collective_difference(
            graphs[first], graphs[other], (f"rank {first}", f"rank {other}")
        )
        if apart is not None:
            return f"the ranks do not agree: {apart.text}", (merged, states)
    said = f"{labels[0]} and {labels[1]} differ: {found[rank].summary}; their collectives agree"
    return said, (merged, states)
