"""Memory that convolutions and LAPACK need beside their results, on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlxbench_kernel.graph.strides import Layout, numbers

_FLOAT = 4  # bytes: convolutions are computed in float32
_INT = 4
_BLOCK = 64  # columns that LAPACK works on at once


def convolution_copies(layout: Layout, text: str, taken: Sequence[int], made: int) -> list[int]:
    """Bytes of the padded input, its patches, and weights and result in float32.

    See ``explicit_gemm_conv_1D_cpu`` and ``explicit_gemm_conv_ND_cpu`` (``cpu/conv.cpp``);
    others, as those in groups along two axes, go without copies, slowly.
    """
    given, weight, out = (layout.shape[array] for array in (*taken[:2], made))
    groups = (numbers(text, "groups") or (1,))[0]
    flip = "flip=true" in text
    dilation = (numbers(text, "kernel_dilation") or ()) + (numbers(text, "input_dilation") or ())
    along_one = len(given) == 3 and not flip
    if any(each != 1 for each in dilation) or not (groups == 1 or along_one):
        return []
    low, high = numbers(text, "padding_low") or (), numbers(text, "padding_high") or ()
    inside = [e + a + b for e, a, b in zip(given[1:-1], low, high, strict=True)]
    padded = given[0] * given[-1] * math.prod(inside)
    patches = math.prod(out[:-1]) * math.prod(weight[1:-1]) * given[-1]
    copies = [padded * _FLOAT, patches * _FLOAT]
    weights = math.prod(weight) * _FLOAT
    straight = layout.form[taken[1]].row and layout.dtype(taken[1]) == "float32"
    copies += [weights] * ((not straight or groups > 1) + flip)
    if layout.dtype(made) != "float32":
        copies.append(math.prod(out) * _FLOAT)
    return copies


def svd_work(layout: Layout, matrix: int, vectors: bool) -> int:
    """Bytes for ``gesdd``, by the formulae in its source (LAPACK 3.12, ``sgesdd.f``)."""
    rows, columns = sorted(layout.shape[matrix][-2:], reverse=True)
    work = 3 * columns * columns + 7 * columns if vectors else 7 * columns
    if vectors and rows >= columns * 11 // 6:
        work += columns * columns
    work = max(work, 3 * columns + (rows + columns) * _BLOCK // 2)
    return work * layout.itemsize[matrix] + 8 * columns * _INT


def factor_work(layout: Layout, matrix: int) -> int:
    """Bytes for ``geqrf``, ``orgqr`` and ``getri``: columns, and the reflectors or pivots."""
    return layout.shape[matrix][-1] * (_BLOCK + 1) * layout.itemsize[matrix]


def eig_work(layout: Layout, matrix: int, vectors: bool, symmetric: bool) -> int:
    """Bytes for ``syevd`` and ``geev``, by the formulae in their sources (LAPACK 3.12)."""
    n, item = layout.shape[matrix][-1], layout.itemsize[matrix]
    if symmetric:
        work = 1 + 6 * n + 2 * n * n if vectors else 1 + 2 * n
        return work * item + (3 + 5 * n if vectors else 1) * _INT
    own = 2 * n + (2 * n * n if vectors else 0)  # values, and vectors of reals and imaginaries
    return (own + n * (2 + (2 * _BLOCK if vectors else _BLOCK // 2))) * item
