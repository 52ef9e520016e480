"""Where two ranks call different collectives: from there they wait for each other for ever."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from mlxbench_kernel.graph.model import COLLECTIVES, Graph
from mlxbench_kernel.graph.peak import order

_ONE_TO_ONE = ("send", "recv")  # what one rank sends another receives: different on purpose


@dataclass(frozen=True)
class CollectiveDifference:
    """The first collective that is not the same on two ranks.

    Attributes
    ----------
    index
        Which collective of the graph it is, from 0.
    a, b
        The nodes in the two graphs; None where one of them has no more collectives.
    text
        One line about it.
    """

    index: int
    a: int | None
    b: int | None
    text: str


def first_collective_difference(
    a: Graph, b: Graph, labels: tuple[str, str] = ("a", "b"), numbered: bool = False
) -> CollectiveDifference | None:
    """The first collective in order where two graphs differ in operation, shape or dtype.

    Send and Recv are not compared.

    Parameters
    ----------
    a, b
        Graphs of two ranks.
    labels
        What to call them, as ``("rank 0", "rank 1")``.
    numbered
        As for `collectives`.

    Returns
    -------
    CollectiveDifference or None
        None where all collectives agree.
    """
    pairs = zip_longest(*(collectives(each, numbered) for each in (a, b)))
    for index, (one, other) in enumerate(pairs):
        if _same(a, one, b, other):
            continue
        told = [
            f"{label}: {_line(graph, node)}"
            for label, graph, node in ((labels[0], a, one), (labels[1], b, other))
        ]
        text = f"collective {index + 1} differs: {'; '.join(told)}"
        return CollectiveDifference(index, one, other, text)
    return None


def collectives(graph: Graph, numbered: bool = False) -> list[int]:
    """The nodes in which all ranks take part, in order.

    Parameters
    ----------
    graph
        Of one rank.
    numbered
        In the order of their numbers, in which `profile` and `first_nonfinite` evaluate; else in
        that in which MLX does (`peak.order`).
    """
    wanted = [COLLECTIVES.get(name, "send") not in _ONE_TO_ONE for name in graph.primitives]
    found = set(np.flatnonzero(np.array(wanted, np.bool_)[graph.primitive]).tolist())
    return sorted(found) if numbered else [node for node in order(graph) if node in found]


def _same(a: Graph, one: int | None, b: Graph, other: int | None) -> bool:
    if one is None or other is None or a.collective(one) != b.collective(other):
        return False
    return not (a.complete and b.complete) or _sizes(a, one) == _sizes(b, other)


def _sizes(graph: Graph, node: int) -> list[str]:
    return [
        graph.describe(int(array)) for array in (*graph.inputs_of(node), *graph.outputs_of(node))
    ]


def _line(graph: Graph, node: int | None) -> str:
    if node is None:
        return "none"
    taken = ", ".join(graph.describe(int(array)) for array in graph.inputs_of(node))
    place = graph.scopes[int(graph.scope[node])].path
    line = f"{graph.collective(node)} of {taken}" if taken else graph.collective(node)
    return f"{line} in {place}" if place else line
