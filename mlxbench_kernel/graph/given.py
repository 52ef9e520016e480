"""What functions of graphs are given, checked, with what to give instead."""

from __future__ import annotations

import mlx.core as mx

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.model import Graph


def check_graph(function: str, *given: object) -> None:
    """See that a function got graphs.

    Parameters
    ----------
    function
        What it is called.
    *given
        What it got.

    Raises
    ------
    UsageError
        Something else; says how to make a graph of it.
    """
    for each in given:
        if isinstance(each, Graph):
            continue
        kind = "an array" if isinstance(each, mx.array) else f"a {type(each).__name__}"
        raise UsageError(
            f"{function} takes a graph, not {kind}: give capture(y) of a lazy array y, or "
            "capture(step, x) of a call"
        )
