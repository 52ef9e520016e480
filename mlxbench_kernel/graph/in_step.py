"""Whether ranks that evaluate their graphs together, node by node, would wait for ever."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from mlxbench_kernel.graph.collective_order import first_collective_difference
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.profile import collectives_of


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
        One line; "" where they would come through, node by node and in MLX's own order.
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
    return _unsent(graphs)


def pair_of(graph: Graph, node: int) -> int | None:
    """The rank that a node sends to or receives from; None for other nodes."""
    if graph.collective(node) not in ("send", "recv"):
        return None
    return int(graph.arguments_text(node).partition("=")[2])


def _unsent(graphs: Mapping[int, Graph]) -> str:
    """The first receive for which nothing is ever sent; sends are taken not to wait."""
    waiting = {rank: deque(collectives_of(graph)) for rank, graph in graphs.items()}
    sent: Counter[tuple[int, int]] = Counter()
    while any(waiting.values()):
        moved = False
        for rank, nodes in waiting.items():
            while nodes and (peer := pair_of(graphs[rank], nodes[0])) is not None:
                if graphs[rank].collective(nodes[0]) == "send":
                    sent[rank, peer] += 1
                elif sent[peer, rank]:
                    sent[peer, rank] -= 1
                else:
                    break
                nodes.popleft()
                moved = True
        if moved:
            continue
        # What is left of those who come through is a collective of all, the same on all ranks.
        for rank, nodes in waiting.items():
            if nodes and (peer := pair_of(graphs[rank], nodes[0])) is not None:
                return (
                    f"rank {rank} would wait for ever for what rank {peer} does not send it "
                    f"before (recv, node {nodes[0]})"
                )
        for nodes in waiting.values():
            nodes.popleft()
    return ""
