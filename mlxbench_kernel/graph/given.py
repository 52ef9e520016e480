"""What functions of graphs are given, checked, with what to give instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.trees import arrays_in


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


def given_arrays(function: str, tree: Any) -> list[mx.array]:
    """The arrays that a function got, in whatever they are kept.

    Parameters
    ----------
    function
        What it is called.
    tree
        An array; or lists, tuples, dicts, modules and optimizers that hold arrays.

    Raises
    ------
    UsageError
        It holds none; says what to give.
    """
    if isinstance(tree, (list, tuple)) and all(isinstance(each, mx.array) for each in tree):
        arrays = list(tree)
    else:
        arrays = arrays_in(tree)
    if arrays:
        return arrays
    raise UsageError(
        f"{function} takes lazy arrays, and this {type(tree).__name__} holds none: give at least "
        f"one, as {function}(y), or a list or dict of them"
    )


@contextmanager
def on_own_thread() -> Iterator[None]:
    """Say of arrays of another thread, which MLX evaluates only there, what to do.

    Raises
    ------
    UsageError
        In the block such an array was evaluated. Each thread has streams of its own
        (``mlx/backend/cpu/encoder.cpp``).
    """
    try:
        yield
    except RuntimeError as error:
        if "There is no Stream" not in str(error):
            raise
        raise UsageError(
            "these arrays were made on another thread, and MLX evaluates them only there: do this "
            "on that thread, or make them anew on this one"
        ) from None
