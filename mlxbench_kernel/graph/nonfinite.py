"""The first operation of a lazy graph whose result has NaN or Inf, found on a copy of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbench_kernel.graph.capture import named
from mlxbench_kernel.graph.given import given_arrays, on_own_thread
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.profile import TOLD_EVERY, collectives_of, graph_of, replayed


@dataclass(frozen=True)
class Values:
    """What an array holds, in a few numbers.

    Attributes
    ----------
    name
        The user's name for it; "" where there is none.
    shape, dtype
        As the array's.
    size, nans, infs
        How many elements there are, how many are NaN and how many infinite.
    lowest, highest
        Of the finite elements (of complex ones: their magnitude); None where there are none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nans: int
    infs: int
    lowest: float | None
    highest: float | None

    def __str__(self) -> str:
        bad = [f"{n} {kind}" for n, kind in ((self.nans, "NaN"), (self.infs, "Inf")) if n]
        what = f"{' and '.join(bad)} of {self.size}, " if bad else ""
        finite = (
            "nothing finite"
            if self.lowest is None
            else f"{'finite ' if bad else ''}{self.lowest:.4g} to {self.highest:.4g}"
        )
        name = f"{self.name} " if self.name else ""
        return f"{name}{self.dtype} {list(self.shape)}: {what}{finite}"


@dataclass(frozen=True)
class NonFinite:
    """Where NaN or Inf come from.

    Attributes
    ----------
    node
        Its number in the graph.
    primitive
        MLX's name of the operation; "" for an input (a parameter, data, a constant).
    path
        The module it belongs to; "" where that is not known.
    output
        The first of its results that is not finite.
    inputs : tuple of Values
        What it took, in order.
    reaches
        Whether an array that was asked for has NaN or Inf because of it.
    """

    node: int
    primitive: str
    path: str
    output: Values
    inputs: tuple[Values, ...]
    reaches: bool

    def __str__(self) -> str:
        where = f" in {self.path}" if self.path else ""
        if self.primitive:
            took = "; ".join(map(str, self.inputs)) or "nothing"
            text = f"{self.primitive}{where} (node {self.node}) gives {self.output} (from {took})"
        else:
            kind = "the input" if self.output.name else "an input without a name"
            text = f"{kind}{where} is not finite: {self.output}"
        return text if self.reaches else f"{text}; what was asked for is finite all the same"


def first_nonfinite(
    outputs: Any,
    graph: Graph | None = None,
    collectives: bool = True,
    progress: Callable[[float, str], None] | None = None,
) -> NonFinite | None:
    """Find the first operation whose result has NaN or Inf while what it takes has none.

    The arrays stay lazy: a copy is evaluated, to its end, and nothing is kept longer than it
    is needed. Where an array that was asked for is not finite, only what it comes from is
    meant: a mask of -inf that softmax has made finite is not.

    Parameters
    ----------
    outputs
        Lazy arrays, as a loss and gradients: one, or any nesting of lists, dicts and modules that
        holds some.
    graph
        Their graph with names and scopes, as a capture has it; by default with those that the
        variables of the calling cell, or module, give.
    collectives
        Execute collectives too: all ranks then have to call this together, as they would have
        to evaluate the arrays together. On a rank whose own part is finite, the first operation
        is then the collective that brought NaN from another one. False has their input, or
        zeros, stand for their result, so each rank finds its own alone.
    progress
        Told the fraction done (0 to 1), and what is under way.

    Returns
    -------
    NonFinite or None
        None where everything is finite.

    Raises
    ------
    UsageError
        There is no native module, no array, the graph is another one, or the arrays belong to
        another thread.

    Examples
    --------
    In a cell on all ranks:

    >>> print(rank, first_nonfinite(loss))
    """
    arrays = given_arrays("first_nonfinite", outputs)
    if graph is None:
        graph = named(graph_of(arrays, None), sys._getframe(1).f_globals)
    return traced(arrays, graph, collectives, progress).found


@dataclass(frozen=True)
class Traced:
    """What one rank found.

    Attributes
    ----------
    found
        As `first_nonfinite` gives it.
    given : dict of int to NonFinite
        For the collectives that were given NaN or Inf here, by node: where those come from.
    """

    found: NonFinite | None
    given: Mapping[int, NonFinite]


def traced(
    outputs: Sequence[mx.array],
    graph: Graph | None,
    collectives: bool,
    progress: Callable[[float, str], None] | None = None,
) -> Traced:
    """As `first_nonfinite`, with what it takes to follow NaN from rank to rank."""
    replay = replayed(outputs, collectives=collectives, donate=False)
    try:
        with on_own_thread():
            return _traced(replay, graph_of(outputs, graph), progress)
    finally:
        replay.restart()  # the traceback of an error would hold what is half done


def _traced(replay: Any, graph: Graph, progress: Callable[[float, str], None] | None) -> Traced:
    of_nan: dict[int, int] = {}  # of arrays with NaN, the node that it comes from
    of_inf: dict[int, int] = {}  # of those with Inf alone
    found: dict[int, NonFinite] = {}
    given: dict[int, NonFinite] = {}
    meeting = set(collectives_of(graph))
    for node in range(graph.nodes):
        if progress is not None and node % TOLD_EVERY == 0:
            progress(node / graph.nodes, "looking for NaN and Inf")
        replay.step()
        values = replay.values()
        taken = [int(array) for array in graph.inputs_of(node)]
        if node in meeting and (origin := _origin(taken, of_nan, of_inf)) is not None:
            given[node] = found[origin]
        for i, value in enumerate(values):
            if _is_finite(value):
                continue
            nan = _has_nan(value)
            # What NaN comes from is an input with NaN, and no mask of -inf beside it.
            origin = _origin(taken, of_nan if nan else {}, of_inf)
            if origin is None:
                origin = _origin(taken, of_nan, {})
            if origin is None:
                origin = node
            if origin == node and node not in found:
                found[node] = _described(graph, node, i, values, replay.inputs())
            (of_nan if nan else of_inf)[graph.outputs_of(node)[i]] = origin
    reached = _origin(graph.outputs.tolist(), of_nan, of_inf)
    if reached is not None:
        return Traced(found[reached], given)
    if not found:
        return Traced(None, given)
    return Traced(replace(found[min(found)], reaches=False), given)


def _origin(
    arrays: Sequence[int], of_nan: Mapping[int, int], of_inf: Mapping[int, int]
) -> int | None:
    """The first node that NaN in these arrays comes from, or, without NaN, Inf; None without."""
    for known in (of_nan, of_inf):
        nodes = [known[array] for array in arrays if array in known]
        if nodes:
            return min(nodes)
    return None


def _has_nan(array: mx.array) -> bool:
    return bool(mx.any(mx.isnan(array)).item())


def _is_finite(array: mx.array) -> bool:
    if not mx.issubdtype(array.dtype, mx.inexact):
        return True
    return bool(mx.all(mx.isfinite(array)).item())


def _described(
    graph: Graph, node: int, position: int, values: list[mx.array], inputs: list[mx.array]
) -> NonFinite:
    number = graph.outputs_of(node)[position]
    taken = zip(graph.inputs_of(node).tolist(), inputs, strict=True)
    return NonFinite(
        node=node,
        primitive=graph.label(node) if not graph.is_input(node) else "",
        path=graph.scopes[int(graph.scope[node])].path,
        output=_values(graph.names.get(number, ""), values[position]),
        inputs=tuple(_values(graph.names.get(array, ""), value) for array, value in taken),
        reaches=True,
    )


def _number(array: mx.array) -> int:
    return int(np.array(array))


def _values(name: str, array: mx.array) -> Values:
    finite = mx.isfinite(array)
    plain = mx.abs(array) if array.dtype == mx.complex64 else array
    if array.dtype in (mx.bool_, mx.float16, mx.bfloat16):
        plain = plain.astype(mx.float32)
    any_finite = bool(mx.any(finite).item())
    count = _number(mx.sum(finite))
    nans = _number(mx.sum(mx.isnan(array)))
    first = mx.argmax(finite.flatten()) if any_finite else None
    # What is not finite is replaced by an element that is, so that it changes neither end.
    kept = mx.where(finite, plain, plain.flatten()[first]) if first is not None else None
    return Values(
        name=name,
        shape=array.shape,
        dtype=str(array.dtype).removeprefix("mlx.core."),
        size=array.size,
        nans=nans,
        infs=array.size - count - nans,
        lowest=None if kept is None else float(np.array(mx.min(kept))),
        highest=None if kept is None else float(np.array(mx.max(kept))),
    )
