"""What the user calls the inputs of two graphs, so that they are compared by it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlxbench_kernel.graph.model import Graph

Names = Mapping[int, str]  # by node

_VARIABLE = re.compile(r"([^.\[]+)([.\[].*)")


def input_names(graph: Graph) -> dict[int, str]:
    """The names of what nothing computes, by node."""
    found = ((int(graph.node[array]), name) for array, name in graph.names.items())
    return {node: name for node, name in found if graph.is_input(node)}


def comparable_names(a: Graph, b: Graph) -> tuple[Names, Names]:
    """As `input_names`, of two graphs.

    Where all that one graph calls ``old.…`` the other one calls ``new.…``, a variable that holds
    a model or a list has another name, and what it holds has not: in the second graph it is
    called as in the first.
    """
    of_a, of_b = input_names(a), input_names(b)
    holders_a, holders_b = _holders(of_a), _holders(of_b)
    gone, come = holders_a - holders_b, holders_b - holders_a
    if len(gone) == len(come) == 1:
        (old,), (new,) = gone, come
        for node, name in of_b.items():
            match = _VARIABLE.fullmatch(name)
            if match is not None and match[1] == new:
                of_b[node] = old + match[2]
    return of_a, of_b


def _holders(names: Names) -> set[str]:
    """The first parts of names that have several."""
    return {match[1] for name in names.values() if (match := _VARIABLE.fullmatch(name))}
