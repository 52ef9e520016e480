"""The first operation of a lazy graph whose result has NaN or Inf, found on a copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.profile import replayed
from mlxbench_kernel.graph.reader import read


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
            text = f"{self.primitive}{where} gives {self.output} (from {took})"
        else:
            kind = "the input" if self.output.name else "an input without a name"
            text = f"{kind}{where} is not finite: {self.output}"
        return text if self.reaches else f"{text}; what was asked for is finite all the same"


def first_nonfinite(
    outputs: Sequence[mx.array] | mx.array,
    graph: Graph | None = None,
    collectives: bool = False,
) -> NonFinite | None:
    """Find the first operation whose result has NaN or Inf while what it takes has none.

    The arrays stay lazy: a copy is evaluated, to its end, and nothing is kept longer than it
    is needed. Where an array that was asked for is not finite, only what it comes from is
    meant: a mask of -inf that softmax has made finite is not.

    Parameters
    ----------
    outputs
        Lazy arrays, as a loss and gradients.
    graph
        Their graph with names and scopes, as a capture has it.
    collectives
        Execute collectives too: all ranks then have to call this together. Otherwise their
        input, or zeros, stands for their result.

    Returns
    -------
    NonFinite or None
        None where everything is finite.

    Raises
    ------
    UsageError
        There is no native module, no array, or the graph is another one.
    """
    arrays = [outputs] if isinstance(outputs, mx.array) else list(outputs)
    replay = replayed(arrays, collectives=collectives, donate=False)
    if graph is None:
        graph = read(arrays)
    if graph.nodes != replay.nodes:
        raise UsageError(
            f"the graph has {graph.nodes} nodes and that of these arrays {replay.nodes}: "
            "give the graph of the same arrays, or none"
        )
    bad: set[int] = set()  # arrays
    origin: dict[int, set[int]] = {}  # of bad arrays, the nodes that they come from
    found: dict[int, NonFinite] = {}
    for node in range(graph.nodes):
        replay.step()
        values = replay.values()
        numbers = graph.outputs_of(node)
        here = [i for i, value in enumerate(values) if not _is_finite(value)]
        if not here:
            continue
        taken = [int(array) for array in graph.inputs_of(node)]
        before = set().union(*(origin[array] for array in taken if array in bad))
        if not before:
            before = {node}
            found[node] = _described(graph, node, here[0], values, replay.inputs())
        for i in here:
            bad.add(numbers[i])
            origin[numbers[i]] = before
    reached = {node for array in graph.outputs.tolist() for node in origin.get(array, ())}
    if reached:
        return found[min(reached)]
    if not found:
        return None
    first = found[min(found)]
    return NonFinite(**{**vars(first), "reaches": False})


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
