"""Which buffers a primitive shares, takes over or allocates, as MLX's CPU backend does it.

Follows ``mlx/backend/cpu`` and ``mlx/backend/common`` of MLX 0.32.4, file by file. A primitive
that is not here, as a custom kernel, is taken to allocate what it gives.
"""

from __future__ import annotations

from mlxbench_kernel.graph import elementwise, sharing, strides
from mlxbench_kernel.graph.buffers import Allocation, Call, Output, Rule
from mlxbench_kernel.graph.strides import numbers
from mlxbench_kernel.graph.workspace import convolution_copies, eig_work, factor_work, svd_work


def allocation(call: Call) -> Allocation:
    """What evaluating a node does to memory."""
    rule = elementwise.compiled if call.fused else _RULES.get(call.name)
    if rule is None:
        family = call.name.partition(" ")[0]  # of "Scatter Sum" and "View uint8"
        rule = _RULES.get(family, _computed)
    return rule(call)


# -- along axes --------------------------------------------------------------------------


def _softmax(call: Call) -> Allocation:
    form = call.form(0)
    if form.contiguous and form.strides[-1:] == (1,):
        free = call.free(call.taken[0])
        return Allocation([Output(0, 0, form) if free else call.like(form)])
    return Allocation([call.new()], (), 2)


def _log_sum_exp(call: Call) -> Allocation:
    form = call.form(0)
    straight = form.contiguous and form.strides[-1:] == (1,)
    copy = [] if straight else [call.layout.nbytes[call.taken[0]]]
    return Allocation([call.new()], copy, 1 + len(copy))


def _scan(call: Call) -> Allocation:
    copy = call.straightened([0])
    return Allocation([call.new()], copy, 1 + len(copy))


def _sort(call: Call) -> Allocation:
    axis = (numbers(call.text, "axis") or (-1,))[0]
    form = call.form(0)
    return Allocation([call.copied(0, form.contiguous and form.strides[axis] != 0)], (), 2)


def _into_copy(call: Call) -> Allocation:
    """Of the first input, into which something is written: Scatter, SliceUpdate, …"""
    form = call.form(0)
    if call.name.startswith(("SliceUpdate", "DynamicSliceUpdate")):
        if call.layout.size[call.taken[1]] == 0:
            return Allocation([Output(0, 0, form)], (), 0)
        whole = form.contiguous and form.elements == call.layout.size[call.taken[0]]
    else:
        whole = form.row
    return Allocation([call.copied(0, whole)], (), 2)


def _full(call: Call) -> Allocation:
    return Allocation([call.copied(0, call.form(0).contiguous)])


# -- products ----------------------------------------------------------------------------


def _gemm_copies(call: Call) -> list[int]:
    """Of the matrices that BLAS does not take as they lie (``matmul_general``)."""
    copies = []
    for place in (0, 1):
        shape, steps = call.layout.shape[call.taken[place]], call.form(place).strides
        if steps[-2:] not in ((shape[-1], 1), (1, shape[-2])):
            copies.append(call.layout.nbytes[call.taken[place]])
    return copies


def _matmul(call: Call) -> Allocation:
    copies = [] if call.on_gpu else _gemm_copies(call)
    return Allocation([call.new()], copies, 1 + len(copies))


def _add_matmul(call: Call) -> Allocation:
    copies = [] if call.on_gpu else _gemm_copies(call)
    return Allocation([call.copied(2, call.form(2).row)], copies, 2 + len(copies))


def _quantized(call: Call) -> Allocation:
    copies = call.straightened(range(min(4, len(call.taken))))
    outputs = [call.new(number) for number in range(len(call.made))]
    return Allocation(outputs, copies, 1 + len(copies))


def _convolution(call: Call) -> Allocation:
    if call.on_gpu:  # which does without patches
        return Allocation([call.new()])
    copies = convolution_copies(call.layout, call.text, call.taken, call.made[0])
    return Allocation([call.new()], copies, 2 + len(copies))


# -- linear algebra ----------------------------------------------------------------------


def _in_place(call: Call) -> Allocation:
    """LAPACK works in a copy of the matrix, which becomes the result."""
    work = factor_work(call.layout, call.taken[0]) if call.name == "Inverse" else 0
    return Allocation([call.copied(0, call.form(0).row)], (), 2, work)


def _factors(call: Call) -> Allocation:
    """LAPACK works in a copy of the matrix, which the results are taken from."""
    layout, source = call.layout, call.taken[0]
    several = len(call.made) > 1
    outputs = [call.new(number) for number in range(len(call.made))]
    # The copy may be one of the results, or, of a single result, the matrix itself.
    own = call.name == "LUF" or (call.name == "Eigh" and several)
    own |= not several and call.form(0).row and call.free(source)
    copy = [] if own else [layout.nbytes[source]]
    work = 0
    if call.name == "SVD":
        work = svd_work(layout, source, several)
    elif call.name == "QRF":
        work = factor_work(layout, source)
    elif call.name in ("Eig", "Eigh"):
        work = eig_work(layout, source, several, call.name == "Eigh")
    by_columns = {"LUF": 0, "Eig": 1, "Eigh": 1}.get(call.name)
    if by_columns is not None and by_columns < len(outputs):
        made = outputs[by_columns]
        outputs[by_columns] = made._replace(form=strides.by_columns(made.form))
    return Allocation(outputs, copy, 2, work)


# -- collectives and the rest ----------------------------------------------------------------


def _all_reduce(call: Call) -> Allocation:
    if call.form(0).row and call.free(call.taken[0]):
        return Allocation([Output(0, 0, call.form(0))])
    return Allocation([call.new()])


def _gathered(call: Call) -> Allocation:
    return Allocation([call.new()], call.straightened([0]))


def _send(call: Call) -> Allocation:
    return Allocation([Output(0, 0, call.form(0))], call.straightened([0]))


def _normalised(call: Call) -> Allocation:
    """RMSNorm, LayerNorm and RoPE of a GPU, whose results replace what they are made from."""
    outputs = [Output(0, 0, call.form(0)) if call.form(0).row and call.donates(0) else call.new()]
    return Allocation(outputs + [call.new(number) for number in range(1, len(call.made))])


def _computed(call: Call) -> Allocation:
    return Allocation([call.new(number) for number in range(len(call.made))])


def _pieces(call: Call) -> Allocation:
    """Each input is copied to its place by itself."""
    return Allocation([call.new()], (), max(len(call.taken), 1))


_RULES: dict[str, Rule] = {
    **sharing.RULES,
    **elementwise.RULES,
    "Softmax": _softmax,
    "LogSumExp": _log_sum_exp,
    "Sort": _sort,
    "Partition": _sort,
    "Scatter": _into_copy,
    "ScatterAxis": _into_copy,
    "MaskedScatter": _into_copy,
    "SliceUpdate": _into_copy,
    "DynamicSliceUpdate": _into_copy,
    "Full": _full,
    "Concatenate": _pieces,
    "Pad": _pieces,
    "Matmul": _matmul,
    "GatherMM": _matmul,
    "SegmentedMM": _matmul,
    "BlockMaskedMM": _matmul,
    "AddMM": _add_matmul,
    "QuantizedMatmul": _quantized,
    "GatherQMM": _quantized,
    "QQMatmul": _quantized,
    "Quantize": _quantized,
    "Convolution": _convolution,
    "Inverse": _in_place,
    "Cholesky": _in_place,
    "Hadamard": _in_place,
    "SVD": _factors,
    "QRF": _factors,
    "LUF": _factors,
    "Eig": _factors,
    "Eigh": _factors,
    "Sum AllReduce": _all_reduce,
    "Max AllReduce": _all_reduce,
    "Min AllReduce": _all_reduce,
    "AllGather": _gathered,
    "Sum ReduceScatter": _gathered,
    "Send": _send,
    "RMSNorm": _normalised,
    "LayerNorm": _normalised,
    "RoPE": _normalised,
    **dict.fromkeys(["CumLogAddExp", "CumMax", "CumMin", "CumProd", "CumSum"], _scan),
}
