"""Floating-point operations and bytes of each node, by the usual counting.

====================================  =====================================================
primitive                             operations
====================================  =====================================================
moves and views, collectives          0
element by element                    1 per element of the output; exp, sin, … count as 1 too
fused by ``mx.compile``               1 per element and fused primitive, moves left out
reductions, cumulative ones           1 per element of the input
Softmax, LogSumExp                    5 per element of the input
Matmul, QuantizedMatmul, GatherMM     2·m·n·k; AddMM 2 more per element of the output
Convolution                           2·outputs·(weights per output channel)/input dilation
Sort, Partition and their arguments   n·log2 n along the axis
FFT                                   5·n·log2 n of all elements, half for real ones
RMSNorm, LayerNorm                    4 and 8 per element; their VJPs twice that
RoPE                                  6 per two elements
ScaledDotProductAttention             4·outputs·keys and 5 per score; its VJP 2.5 times that
====================================  =====================================================
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.model import COLLECTIVES, Graph, Sizes

_VIEWS = frozenset(
    [
        "Transpose",
        "Reshape",
        "Flatten",
        "Unflatten",
        "Broadcast",
        "BroadcastAxes",
        "Slice",
        "Squeeze",
        "ExpandDims",
        "Split",
        "AsStrided",
        "Copy",
        "StopGradient",
        "Depends",
        "CustomTransforms",
    ]
)
_MOVES = frozenset(
    [
        "AsType",
        "View",
        "Contiguous",
        "Concatenate",
        "Pad",
        "Full",
        "Arange",
        "RandomBits",
        "Gather",
        "GatherAxis",
        "Scatter",
        "ScatterAxis",
        "DynamicSlice",
        "DynamicSliceUpdate",
        "SliceUpdate",
        "NumberOfElements",
        "Load",
    ]
)
_ELEMENTWISE = frozenset(
    [
        "Abs",
        "Add",
        "ArcCos",
        "ArcCosh",
        "ArcSin",
        "ArcSinh",
        "ArcTan",
        "ArcTan2",
        "ArcTanh",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "LeftShift",
        "RightShift",
        "BitwiseInvert",
        "Ceil",
        "Cos",
        "Cosh",
        "Conjugate",
        "Divide",
        "DivMod",
        "Remainder",
        "Equal",
        "NaNEqual",
        "Erf",
        "ErfInv",
        "Exp",
        "Expm1",
        "Floor",
        "Greater",
        "GreaterEqual",
        "Imag",
        "Less",
        "LessEqual",
        "Log",
        "Log2",
        "Log10",
        "Log1p",
        "LogicalNot",
        "LogicalAnd",
        "LogicalOr",
        "LogAddExp",
        "Maximum",
        "Minimum",
        "Multiply",
        "Negative",
        "NotEqual",
        "Power",
        "Real",
        "Round",
        "Rsqrt",
        "Select",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Sqrt",
        "Square",
        "Subtract",
        "Tan",
        "Tanh",
    ]
)
_REDUCTIONS = frozenset(
    [
        "Sum",
        "Prod",
        "Max",
        "Min",
        "And",
        "Or",
        "ArgReduce",
        "ArgMax",
        "ArgMin",
        "CumSum",
        "CumProd",
        "CumMax",
        "CumMin",
        "CumLogaddexp",
    ]
)
_PER_ELEMENT = {
    "Softmax": 5.0, "LogSumExp": 5.0, "RMSNorm": 4.0, "LayerNorm": 8.0,
    "RMSNormVJP": 8.0, "LayerNormVJP": 16.0, "RoPE": 3.0,
}  # fmt: skip
_SORTS = frozenset(("Sort", "ArgSort", "Partition", "ArgPartition"))


@dataclass(frozen=True)
class Cost:
    """What nodes compute and move.

    Attributes
    ----------
    flops, read, written, wire : int64 [nodes]
        Operations, bytes read and written, and bytes that collectives send.
    unknown
        Names of primitives without a rule; their operations are not in `flops`.
    """

    flops: Sizes
    read: Sizes
    written: Sizes
    wire: Sizes
    unknown: tuple[str, ...]

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

    Raises
    ------
    UsageError
        If shapes are not known (`Graph.complete` is False).
    """
    if not graph.complete:
        raise UsageError(
            "this graph has no shapes, so it cannot be costed: install a C++ compiler and "
            "capture it again"
        )
    starts = graph.shape_start.tolist()
    extents = graph.extents.tolist()
    shapes = [extents[a:b] for a, b in itertools.pairwise(starts)]
    sizes = [math.prod(shape) for shape in shapes]
    real = graph.nbytes.tolist()
    flops, read, written, wire = (np.zeros(graph.nodes, np.int64) for _ in range(4))
    unknown: dict[str, None] = {}
    inputs, first = graph.inputs.tolist(), graph.input_start.tolist()
    made_from = graph.output_start.tolist()
    for node, number in enumerate(graph.primitive.tolist()):
        if number == 0:
            continue
        name = graph.primitives[number]
        taken = inputs[first[node] : first[node + 1]]
        made = range(made_from[node], made_from[node + 1])
        if name in _VIEWS:
            for array in made if taken else ():
                real[array] = min(real[array], real[taken[0]])
            continue
        read[node] = sum(real[array] for array in dict.fromkeys(taken))
        written[node] = sum(real[array] for array in made)
        if name in COLLECTIVES:
            wire[node] = sum(real[array] for array in taken)
        elif node in graph.fused:
            inside = [each for each in graph.fused[node] if each not in _VIEWS | _MOVES]
            flops[node] = len(inside) * max(sizes[array] for array in made)
        elif name in _ELEMENTWISE:
            flops[node] = sum(sizes[array] for array in made)
        elif name not in _MOVES:
            given, out = [shapes[array] for array in taken], shapes[made[0]]
            count = _operations(name, graph.arguments_text(node), given, out)
            if count is None:
                unknown[name] = None
            flops[node] = count or 0
    return Cost(flops, read, written, wire, tuple(unknown))


def _operations(name: str, text: str, given: list[list[int]], out: list[int]) -> int | None:
    """Operations of one primitive of these shapes; None where there is no rule."""
    outputs = math.prod(out)
    elements = math.prod(given[0]) if given else 0
    if name in ("Matmul", "GatherMM", "QuantizedMatmul", "GatherQMM"):
        return 2 * outputs * given[0][-1]
    if name == "AddMM":
        return 2 * outputs * given[0][-1] + 2 * outputs
    if name == "Convolution":
        dilation = re.search(r"input_dilation=\[([\d, ]+)\]", text)
        spread = math.prod(map(int, dilation[1].split(","))) if dilation else 1
        return 2 * outputs * math.prod(given[1][1:]) // spread
    if name in _REDUCTIONS:
        return elements
    if name.startswith("Scatter"):  # with a reduction: "Scatter Sum"
        return math.prod(given[-1])
    if name in _PER_ELEMENT:
        return int(_PER_ELEMENT[name] * elements)
    if name in _SORTS:
        axis = re.search(r"axis=(-?\d+)", text)
        return int(elements * math.log2(max(given[0][int(axis[1]) if axis else -1], 2)))
    if name == "FFT":
        axes = re.search(r"axes=\[([\d, ]+)\]", text)
        whole = given[0] if elements >= outputs else out
        length = math.prod(whole[int(a)] for a in axes[1].split(",")) if axes else whole[-1]
        count = 5 * math.prod(whole) * math.log2(max(length, 2))
        return int(count / 2 if "real=true" in text else count)
    if name.startswith("ScaledDotProductAttention"):
        keys, width = given[1][-2], given[0][-1]
        scores = elements // max(width, 1) * keys
        forward = scores * (4 * width + 5)
        return forward * 5 // 2 if name.endswith("VJP") else forward
    return None
