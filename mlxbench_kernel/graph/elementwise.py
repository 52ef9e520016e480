"""Primitives that compute element by element, and take over the buffer of an input if they can.

Follows ``unary.h``, ``binary.h``, ``ternary.h`` and ``compiled.cpp`` in ``mlx/backend/common`` of
MLX 0.32.4.
"""

from __future__ import annotations

from mlxbench_kernel.graph.buffers import Allocation, Call, Output, Rule
from mlxbench_kernel.graph.strides import packed


def _unary(call: Call) -> Allocation:
    form = call.form(0)
    if not form.contiguous:
        return Allocation([call.new()])
    return Allocation([Output(0, 0, form) if call.donates(0) else call.like(form)])


def _unless(kinds: str) -> Rule:
    """`_unary`, but nothing is done to the dtypes that begin with one of these words."""
    idle = tuple(kinds.split())

    def rule(call: Call) -> Allocation:
        dtype = call.layout.dtype(call.taken[0])
        if dtype.startswith(idle):
            return Allocation([Output(0, 0, call.form(0))], (), 0)
        return _unary(call)

    return rule


def _binary(call: Call) -> Allocation:
    """``set_binary_op_output_data`` (``binary.h``), for each result."""
    return Allocation([_of_two(call, output) for output in range(len(call.made))])


def _of_two(call: Call, output: int) -> Output:
    a, b = call.form(0), call.form(1)
    if a.elements == 1 and b.elements == 1:
        return call.like(a, output)
    if a.elements == 1 and b.contiguous:
        return Output(1, 0, b) if call.donates(1, output) else call.like(b, output)
    if b.elements == 1 and a.contiguous:
        return Output(0, 0, a) if call.donates(0, output) else call.like(a, output)
    if (a.row and b.row) or (a.col and b.col):
        for place, form in ((0, a), (1, b)):
            if call.donates(place, output):
                return Output(place, 0, form)
        return call.like(a, output)
    return _first_rows(call, output)


def _first_rows(call: Call, output: int) -> Output:
    """In the buffer of the first row-contiguous input of the same size, or a new one."""
    size = call.layout.size
    for place, array in enumerate(call.taken):
        fits = call.form(place).row and size[array] == size[call.made[output]]
        if fits and call.donates(place, output):
            return Output(place, 0, call.form(place))
    return call.new(output)


def _select(call: Call) -> Allocation:
    """``set_ternary_op_output_data`` (``ternary.h``)."""
    forms = [call.form(place) for place in range(3)]
    if all(form.elements == 1 for form in forms):
        return Allocation([call.like(forms[1])])
    if all(form.row for form in forms) or all(form.col for form in forms):
        for place, form in enumerate(forms):
            if call.donates(place):
                return Allocation([Output(place, 0, form)])
        return Allocation([call.like(forms[1])])
    return Allocation([_first_rows(call, 0)])


def compiled(call: Call) -> Allocation:
    """``compiled_allocate_outputs`` (``common/compiled.cpp``)."""
    layout = call.layout
    shape, size = layout.shape[call.made[0]], layout.size[call.made[0]]
    wide = [place for place, array in enumerate(call.taken) if layout.shape[array]]
    forms = [call.form(place) for place in wide]
    straight = all(layout.shape[call.taken[place]] == shape for place in wide)
    if len(wide) > 1:
        straight &= all(form.row for form in forms) or all(form.col for form in forms)
    elif wide:
        straight &= forms[0].contiguous
    else:
        straight = not shape
    straight &= not any(stride < 0 for form in forms for stride in form.strides)
    outputs: list[Output] = []
    for place in wide if straight else range(len(call.taken)):
        if len(outputs) == len(call.made):
            break
        array, made = call.taken[place], call.made[len(outputs)]
        fits = straight or (call.form(place).row and layout.size[array] == layout.size[made])
        if fits and layout.itemsize[array] == layout.itemsize[made] and call.free(array):
            outputs.append(Output(place, 0, call.form(place)))
    model = packed(shape)
    if straight:
        model = next((call.form(p) for p in wide if layout.size[call.taken[p]] == size), model)
    for number in range(len(outputs), len(call.made)):
        outputs.append(call.like(model, number) if straight else call.new(number))
    return Allocation(outputs)


_OF_ONE = (
    "ArcCos", "ArcCosh", "ArcSin", "ArcSinh", "ArcTan", "ArcTanh", "AsType", "BitwiseInvert",
    "Conjugate", "Cos", "Cosh", "Erf", "ErfInv", "Exp", "Expm1", "FromFP8", "Imag", "Log",
    "Log10", "Log1p", "Log2", "LogicalNot", "Negative", "Real", "Rsqrt", "Sigmoid", "Sin",
    "Sinh", "Sqrt", "Square", "Tan", "Tanh", "ToFP8",
)  # fmt: skip
_OF_TWO = (
    "Add", "ArcTan2", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "DivMod", "Divide", "Equal",
    "FloorDivide", "Greater", "GreaterEqual", "LeftShift", "Less", "LessEqual", "LogAddExp",
    "LogicalAnd", "LogicalOr", "Maximum", "Minimum", "Multiply", "NaNEqual", "NotEqual",
    "Power", "Remainder", "RightShift", "Subtract",
)  # fmt: skip

RULES: dict[str, Rule] = {
    "Abs": _unless("uint bool"),
    "Ceil": _unless("uint int bool"),
    "Floor": _unless("uint int bool"),
    "Round": _unless("uint int bool"),
    "Sign": _unless("bool"),
    "Select": _select,
    **dict.fromkeys(_OF_ONE, _unary),
    **dict.fromkeys(_OF_TWO, _binary),
}
