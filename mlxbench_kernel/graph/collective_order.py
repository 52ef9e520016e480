"""The collectives of ranks, in order, and where those of two ranks are not the same.

The order is that in which MLX evaluates the outputs of a graph, as they were given: `peak.order`.
All collectives are taken to be on one stream, as MLX puts them unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from mlxbench_kernel.graph.input_names import comparable_names
from mlxbench_kernel.graph.matching import Fingerprints
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
    return difference_of(a, collectives(a, numbered), b, collectives(b, numbered), labels)


def difference_of(
    a: Graph, of_a: Sequence[int], b: Graph, of_b: Sequence[int], labels: tuple[str, str]
) -> CollectiveDifference | None:
    """As `first_collective_difference`, of collectives that are known already."""
    for index, (one, other) in enumerate(zip_longest(of_a, of_b)):
        if _same(a, one, b, other):
            continue
        told = [
            f"{label}: {_line(graph, node)}"
            for label, graph, node in ((labels[0], a, one), (labels[1], b, other))
        ]
        text = f"collective {index + 1} differs: {'; '.join(told)}"
        return CollectiveDifference(index, one, other, text)
    return None


def crossed(
    a: Graph, of_a: Sequence[int], b: Graph, of_b: Sequence[int], labels: tuple[str, str]
) -> CollectiveDifference | None:
    """Where two ranks evaluate the same collectives in another order, although they look alike.

    Nobody waits for ever, but what is summed up is not what was meant. Which collective is which
    is told from what it is computed from and the names of inputs; of those for which nothing is
    the same on the other rank, nothing is said.

    Parameters
    ----------
    a, b, labels
        As for `first_collective_difference`.
    of_a, of_b : sequence of int
        Their collectives, of which `first_collective_difference` finds no difference.
    """
    known = a.complete and b.complete
    names = comparable_names(a, b)
    keys = [
        Fingerprints(graph, known, each).up[list(nodes)].tolist()
        for graph, nodes, each in ((a, of_a, names[0]), (b, of_b, names[1]))
    ]
    for index, (one, other) in enumerate(zip(*keys, strict=False)):
        if one == other or one not in keys[1] or other not in keys[0]:
            continue
        what, place = _line(a, of_a[index], whole=True), keys[1].index(one)
        text = (
            f"collective {index + 1} of {labels[0]}, {what}, is collective {place + 1} of "
            f"{labels[1]}: have them evaluated in the same order on all ranks"
        )
        return CollectiveDifference(index, of_a[index], of_b[index], text)
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
    return of_all_ranks(graph, with_messages(graph, numbered))


def of_all_ranks(graph: Graph, nodes: Sequence[int]) -> list[int]:
    """Of `with_messages` those that are no messages from one rank to another."""
    return [node for node in nodes if graph.collective(node) not in _ONE_TO_ONE]


def with_messages(graph: Graph, numbered: bool = False) -> list[int]:
    """As `collectives`, with sends and receives between them."""
    wanted = np.array([name in COLLECTIVES for name in graph.primitives], np.bool_)
    found = np.flatnonzero(wanted[graph.primitive]).tolist()
    if numbered or not found:
        return found
    chosen = set(found)
    return [node for node in order(graph) if node in chosen]


def _same(a: Graph, one: int | None, b: Graph, other: int | None) -> bool:
    if one is None or other is None or a.collective(one) != b.collective(other):
        return False
    return not (a.complete and b.complete) or _sizes(a, one) == _sizes(b, other)


def _sizes(graph: Graph, node: int) -> list[str]:
    return [
        graph.describe(int(array)) for array in (*graph.inputs_of(node), *graph.outputs_of(node))
    ]


def _line(graph: Graph, node: int | None, whole: bool = False) -> str:
    """A collective with what it takes; `whole` says what that is the result of, too."""
    if node is None:
        return "none"
    taken = ", ".join(
        f"{_made_by(graph, int(array))} {graph.describe(int(array))}".strip()
        if whole
        else graph.describe(int(array))
        for array in graph.inputs_of(node)
    )
    place = graph.scopes[int(graph.scope[node])].path
    line = f"{graph.collective(node)} of {taken}" if taken else graph.collective(node)
    return f"{line} in {place}" if place else line


def _made_by(graph: Graph, array: int) -> str:
    return graph.names.get(array, "") or graph.label(int(graph.node[array]))
