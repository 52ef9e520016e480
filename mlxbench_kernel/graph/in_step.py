"""Whether ranks that evaluate their graphs together, node by node, would wait for ever."""

from __future__ import annotations

from collections.abc import Mapping

from mlxbench_kernel.graph.collective_order import first_collective_difference, with_messages
from mlxbench_kernel.graph.messages import message_fault, pair_of
from mlxbench_kernel.graph.model import Graph

__all__ = ["out_of_step", "pair_of"]


def out_of_step(graphs: Mapping[int, Graph]) -> str:
    """Say where ranks would wait for one another for ever.

    Node by node means in the order of the nodes' numbers, in which `profile` and
    `first_nonfinite` evaluate. What is computed between two collectives may differ.

    Parameters
    ----------
    graphs
        By rank, of all ranks that take part.

    Returns
    -------
    str
        One line; "" where they would come through, node by node and in MLX's own order. Sends
        are taken not to wait, see `messages.message_fault`.
    """
    first, *others = graphs
    for other in others:
        labels = (f"rank {first}", f"rank {other}")
        apart = first_collective_difference(graphs[first], graphs[other], labels)
        if apart is not None:  # `agreement` says the same of them
            return apart.text
        apart = first_collective_difference(graphs[first], graphs[other], labels, numbered=True)
        if apart is not None:
            return f"node by node, {apart.text}"
    for numbered, where in ((False, ""), (True, "node by node, ")):
        sequences = {rank: with_messages(graph, numbered) for rank, graph in graphs.items()}
        fault = message_fault(graphs, sequences)
        if fault is not None and fault.hangs:
            return f"{where}{fault.text}"
    return ""
