"""Floating-point operations and bytes of each node, by the usual counting.

====================================  =====================================================
primitive                             operations
====================================  =====================================================
moves and views, collectives          0; Scatter and SliceUpdate that add: 1 per update
element by element                    1 per element of the output; exp, sin, … count as 1 too
fused by ``mx.compile``               1 per element and fused primitive, moves left out
reductions, cumulative ones           1 per element of the input
Softmax, LogSumExp, CrossEntropy      5 per element of the input; CrossEntropyVJP 4
Matmul, QuantizedMatmul, GatherMM, …  2·m·n·k; AddMM 2 more per element of the output
Convolution                           2·outputs·(weights per output channel)/input dilation
Sort, Partition and their arguments   n·log2 n along the axis; SearchSorted log2 n per output
FFT                                   5·n·log2 n of all elements, half for real ones
Hadamard                              n·log2 n along the last axis
RMSNorm, LayerNorm                    4 and 8 per element; their VJPs twice that
RoPE                                  6 per two elements
ScaledDotProductAttention             2·(q + v)·scores and 5 per score, with q and v the widths
                                      of a head, also of scores that a mask hides; its VJP 2.5
                                      times that
QR, LU, Cholesky, Inverse             2·(2mn² - 2n³/3), mn² - n³/3, n³/3 and 2n³, m ≥ n
SVD                                   4m²n + 8mn² + 9n³; 4mn² - 4n³/3 without vectors
Eigh, Eig                             9n³ and 25n³; 4n³/3 and 10n³ without vectors
Quantize                              5 per weight, 2 to make numbers of integers again
====================================  =====================================================

Of complex numbers: 2 times as many element by element, 6 times for products of elements, 4 times
for products of matrices, convolutions and linear algebra.

====================================  =====================================================
primitive                             bytes read and written
====================================  =====================================================
views, and copies not made            0; a reshape only where elements have to be moved
Gather, GatherAxis, DynamicSlice      what is picked and the indices; the output
GatherMM, GatherQMM                   the matrices that are picked, at most all
Scatter, SliceUpdate, …               updates and indices; the updates; and all of the array
                                      where others need it as it was, so that it is copied
everything else                       each input once, of broadcast ones what is behind them
====================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.given import check_graph
from mlxbench_kernel.graph.model import COLLECTIVES, Graph, Sizes
from mlxbench_kernel.graph.operations import MOVES, Operands, operations
from mlxbench_kernel.graph.traffic import Traffic
from mlxbench_kernel.units import format_bytes, quantity, ratio


@dataclass(frozen=True)
class Cost:
    """What nodes compute and move.

    Attributes
    ----------
    flops, read, written, wire : int64 [nodes]
        Operations, bytes read and written, and bytes that are given to collectives to send.
    unknown
        Names of primitives without a rule; their operations are not in `flops`.
    uncounted : dict of int to str
        The nodes that these are, by their number; of sums over groups empty.
    """

    flops: Sizes
    read: Sizes
    written: Sizes
    wire: Sizes
    unknown: tuple[str, ...]
    uncounted: Mapping[int, str] = field(default_factory=dict)

    @property
    def intensity(self) -> NDArray[np.float64]:
        """Operations per byte moved; 0 where nothing moves. float64 [nodes]"""
        per_byte: NDArray[np.float64] = self.flops / np.maximum(self.read + self.written, 1)
        return per_byte

    @property
    def totals(self) -> dict[str, int]:
        """Sums over all nodes."""
        each = {"flops": self.flops, "read": self.read, "written": self.written, "wire": self.wire}
        return {name: int(values.sum()) for name, values in each.items()}

    def left_out(self, nodes: Iterable[int] | None = None) -> str:
        """What `flops` do not have in them: "no FLOPs known of: MyKernel"; "" for nothing.

        Parameters
        ----------
        nodes
            Those that are looked at; all of them by default.
        """
        names: Iterable[str] = self.unknown
        if nodes is not None:
            names = dict.fromkeys(self.uncounted[n] for n in nodes if n in self.uncounted)
        named = ", ".join(names)
        return f"no FLOPs known of: {named}" if named else ""

    def __repr__(self) -> str:
        return f"<Cost: {str(self).splitlines()[0]}>"

    def __str__(self) -> str:
        """One line of totals, with what is not in them."""
        total = self.totals
        moved = total["read"] + total["written"]
        line = f"{quantity(total['flops'])}FLOP, {format_bytes(moved)} moved"
        if moved:
            line += f" ({ratio(total['flops'] / moved)} FLOP/byte)"
        if total["wire"]:
            line += f", {format_bytes(total['wire'])} to send"
        return "; ".join(part for part in (line, self.left_out()) if part)

    def by(self, groups: NDArray[np.integer], count: int) -> Cost:
        """Sums per group: ``groups`` has a number below ``count`` for each node."""

        def total(values: Sizes) -> Sizes:
            sums = np.zeros(count, np.int64)
            np.add.at(sums, groups, values)
            return sums

        return Cost(
            total(self.flops),
            total(self.read),
            total(self.written),
            total(self.wire),
            self.unknown,
        )


def cost(graph: Graph) -> Cost:
    """Count operations and bytes of every node.

    Parameters
    ----------
    graph
        As `capture` or `read` gives it.

    Raises
    ------
    UsageError
        It is no graph, or its shapes are not known (`Graph.complete` is False).
    """
    check_graph("cost", graph)
    if not graph.complete:
        raise UsageError(
            "this graph has no shapes, so it cannot be costed: install a C++ compiler and "
            "capture it again"
        )
    traffic = Traffic(graph)
    shapes, sizes = traffic.layout.shape, traffic.layout.size
    flops, read, written, wire = ([0] * graph.nodes for _ in range(4))
    uncounted: dict[int, str] = {}
    inputs, first = graph.inputs.tolist(), graph.input_start.tolist()
    made_from, texts = graph.output_start.tolist(), graph.arguments.tolist()
    complex_ = {number for number, name in enumerate(graph.dtypes) if name.startswith("complex")}
    dtype = graph.dtype.tolist() if complex_ else []
    for node, number in enumerate(graph.primitive.tolist()):
        if number == 0:
            continue
        name, text = graph.primitives[number], graph.texts[texts[node]]
        taken = inputs[first[node] : first[node + 1]]
        made = list(range(made_from[node], made_from[node + 1]))
        read[node], written[node] = traffic.of(node, name, text, taken, made)
        if name in COLLECTIVES:
            wire[node] = read[node]
        elif node in graph.fused:
            inside = [each for each in graph.fused[node] if each.partition(" ")[0] not in MOVES]
            flops[node] = len(inside) * max(sizes[array] for array in made)
        else:
            given = Operands(
                [shapes[array] for array in taken],
                [shapes[array] for array in made],
                text,
                [sizes[array] for array in made],
            )
            parts = bool(complex_) and any(dtype[array] in complex_ for array in (*taken, *made))
            count = operations(name, given, parts)
            if count is None:
                uncounted[node] = name
            flops[node] = count or 0
    return Cost(
        np.array(flops, np.int64),
        np.array(read, np.int64),
        np.array(written, np.int64),
        np.array(wire, np.int64),
        tuple(dict.fromkeys(uncounted.values())),
        uncounted,
    )
