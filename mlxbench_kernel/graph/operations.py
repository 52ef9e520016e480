"""Floating-point operations of primitives, by the usual counting.

Linear algebra is counted as in G. H. Golub and C. F. Van Loan, *Matrix Computations*, 4th edition
(their algorithms and those of LAPACK are of the same order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlxbench_kernel.graph.strides import Shape, numbers


class Operands(NamedTuple):
    """What the operations of a node are counted from.

    Attributes
    ----------
    taken, made : sequence of tuple of int
        Shapes of inputs and outputs.
    text
        The primitive's arguments.
    sizes : sequence of int
        Elements of each output.
    """

    taken: Sequence[Shape]
    made: Sequence[Shape]
    text: str
    sizes: Sequence[int]

    @property
    def elements(self) -> int:
        """Of the first input."""
        return math.prod(self.taken[0])


Rule = Callable[[Operands], int]


def _per_element(each: float) -> Rule:
    return lambda given: int(each * given.elements)


def _outputs(given: Operands) -> int:
    return sum(given.sizes)


def _product(given: Operands) -> int:
    return 2 * given.sizes[0] * given.taken[0][-1]


def _product_and_sum(given: Operands) -> int:
    return _product(given) + 2 * given.sizes[0]


def _segmented(given: Operands) -> int:
    """The segments divide the inner axis; how is not known before, the whole is."""
    return 2 * math.prod(given.made[0][-2:]) * given.taken[0][-1]


def _convolution(given: Operands) -> int:
    spread = math.prod(numbers(given.text, "input_dilation") or (1,))
    return 2 * given.sizes[0] * math.prod(given.taken[1][1:]) // max(spread, 1)


def _sort(given: Operands) -> int:
    axis = (numbers(given.text, "axis") or (-1,))[0]
    return int(given.elements * math.log2(max(given.taken[0][axis], 2)))


def _search(given: Operands) -> int:
    return int(given.sizes[0] * math.log2(max(given.taken[0][-1], 2)))


def _fft(given: Operands) -> int:
    whole = given.taken[0] if given.elements >= given.sizes[0] else given.made[0]
    axes = numbers(given.text, "axes")
    length = whole[-1] if axes is None else math.prod(whole[axis] for axis in axes)
    count = 5 * math.prod(whole) * math.log2(max(length, 2))
    return int(count / 2 if "real=true" in given.text else count)


def _hadamard(given: Operands) -> int:
    return int(given.elements * math.log2(max(given.taken[0][-1], 2)))


def _attention(given: Operands) -> int:
    queries, keys, values = given.taken[:3]
    scores = math.prod(queries[:-1]) * keys[-2]
    return scores * (2 * queries[-1] + 2 * values[-1] + 5)


def _attention_vjp(given: Operands) -> int:
    return _attention(given) * 5 // 2


def _each_matrix(count: Callable[[int, int], float]) -> Rule:
    """Times the number of matrices; `count` is given rows and columns."""

    def rule(given: Operands) -> int:
        *batch, rows, columns = given.taken[0]
        return int(math.prod(batch) * count(rows, columns))

    return rule


def _qr(rows: int, columns: int) -> float:
    long, short = max(rows, columns), min(rows, columns)
    factor = 2 * long * short**2 - 2 * short**3 / 3
    # Then Q is made from min(rows, columns) reflectors of length `rows`.
    return factor + 2 * rows * short**2 - 2 * short**3 / 3


def _lu(rows: int, columns: int) -> float:
    long, short = max(rows, columns), min(rows, columns)
    return long * short**2 - short**3 / 3


def _svd(given: Operands) -> int:
    *batch, rows, columns = given.taken[0]
    long, short = max(rows, columns), min(rows, columns)
    if len(given.made) > 1:
        count = 4.0 * long**2 * short + 8 * long * short**2 + 9 * short**3
    else:
        count = 4 * long * short**2 - 4 * short**3 / 3
    return int(math.prod(batch) * count)


def _eigen(with_vectors: float, without: float) -> Rule:
    def rule(given: Operands) -> int:
        *batch, size, _ = given.taken[0]
        each = with_vectors if len(given.made) > 1 else without
        return int(math.prod(batch) * each * size**3)

    return rule


def _quantize(given: Operands) -> int:
    """To integers: minimum, maximum, difference, quotient, rounding; back: product, sum."""
    return 5 * given.elements if len(given.made) > 1 else 2 * given.sizes[0]


# Bits move; nothing is computed of them. A plain Scatter only writes.
MOVES = frozenset(
    [
        "Arange", "AsStrided", "AsType", "Broadcast", "BroadcastAxes", "Concatenate", "Contiguous",
        "Copy", "CustomTransforms", "Depends", "DynamicSlice", "DynamicSliceUpdate", "ExpandDims",
        "Flatten", "FromFP8", "Full", "Gather", "GatherAxis", "Load", "MaskedScatter",
        "NumberOfElements", "Pad", "RandomBits", "Reshape", "Scatter", "ScatterAxis", "Slice",
        "SliceUpdate", "Split", "Squeeze", "StopGradient", "ToFP8", "Transpose", "Unflatten",
        "View",
    ]
)  # fmt: skip
_ELEMENTWISE = (
    "Abs", "Add", "ArcCos", "ArcCosh", "ArcSin", "ArcSinh", "ArcTan", "ArcTan2", "ArcTanh",
    "BitwiseAnd", "BitwiseInvert", "BitwiseOr", "BitwiseXor", "Ceil", "Conjugate", "Cos", "Cosh",
    "DivMod", "Divide", "Equal", "Erf", "ErfInv", "Exp", "Expm1", "Floor", "FloorDivide",
    "Greater", "GreaterEqual", "Imag", "LeftShift", "Less", "LessEqual", "Log", "Log10", "Log1p",
    "Log2", "LogAddExp", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply",
    "NaNEqual", "Negative", "NotEqual", "Power", "Real", "Remainder", "RightShift", "Round",
    "Rsqrt", "Select", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Square", "Subtract", "Tan",
    "Tanh",
)  # fmt: skip
_REDUCTIONS = (
    "And", "ArgReduce", "CumLogAddExp", "CumMax", "CumMin", "CumProd", "CumSum", "Max", "Min", "Or",
    "Prod", "Sum",
)  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _outputs),
    **dict.fromkeys(_REDUCTIONS, _per_element(1)),
    **dict.fromkeys(("Sort", "ArgSort", "Partition", "ArgPartition"), _sort),
    **dict.fromkeys(
        ("Matmul", "QuantizedMatmul", "GatherMM", "GatherQMM", "QQMatmul", "GatherQQMM",
         "BlockMaskedMM"),
        _product,
    ),
    "AddMM": _product_and_sum,
    "SegmentedMM": _segmented,
    "Convolution": _convolution,
    "Softmax": _per_element(5),
    "LogSumExp": _per_element(5),
    "CrossEntropy": _per_element(5),
    "CrossEntropyVJP": _per_element(4),
    "RMSNorm": _per_element(4),
    "RMSNormVJP": _per_element(8),
    "LayerNorm": _per_element(8),
    "LayerNormVJP": _per_element(16),
    "RoPE": _per_element(3),
    "ScaledDotProductAttention": _attention,
    "ScaledDotProductAttentionVJP": _attention_vjp,
    "SearchSorted": _search,
    "FFT": _fft,
    "Hadamard": _hadamard,
    "QRF": _each_matrix(_qr),
    "LUF": _each_matrix(_lu),
    "Cholesky": _each_matrix(lambda rows, _: rows**3 / 3),
    "Inverse": _each_matrix(lambda rows, _: 2 * rows**3),
    "SVD": _svd,
    "Eigh": _eigen(9, 4 / 3),
    "Eig": _eigen(25, 10),
    "Quantize": _quantize,
}  # fmt: skip
# What is not real takes more: of two parts each, sums 2 and products 6 (a product and a sum, 8).
_COMPLEX = {**dict.fromkeys((*_ELEMENTWISE, *_REDUCTIONS), 2), "Multiply": 6, "Prod": 6,
            "CumProd": 6, "Matmul": 4, "AddMM": 4, "Convolution": 4, "SVD": 4, "Eigh": 4,
            "Eig": 4, "Inverse": 4, "Cholesky": 4}  # fmt: skip


def operations(name: str, given: Operands, is_complex: bool) -> int | None:
    """Operations of a primitive; None where there is no rule for it.

    Parameters
    ----------
    name
        As MLX has it, as ``Matmul``, ``Scatter Sum`` or ``View uint8``.
    given
        What they are counted from.
    is_complex
        Whether the numbers are.
    """
    family, _, reduction = name.partition(" ")
    if family in MOVES:
        updates = 1 if family == "SliceUpdate" else -1
        return math.prod(given.taken[updates]) if reduction and family != "View" else 0
    rule = RULES.get(name)
    if rule is None:
        return None
    count = rule(given)
    return count * _COMPLEX.get(name, 1) if is_complex else count
