"""Primitives whose results share the buffer of an input: views, and copies that need not be made.

Follows ``mlx/backend/common/common.cpp`` and ``mlx/backend/cpu/primitives.cpp`` of MLX 0.32.4.
"""

from __future__ import annotations

from collections.abc import Callable

from mlxbench_kernel.graph import strides
from mlxbench_kernel.graph.buffers import SPARE, Allocation, Call, Output, Rule
from mlxbench_kernel.graph.strides import Form, numbers, packed


def _view(change: Callable[[Call], Form]) -> Rule:
    """A rule for a primitive whose only result shares the buffer of its input."""

    def rule(call: Call) -> Allocation:
        if call.layout.size[call.made[0]] == 0:
            return Allocation([call.new()], (), 0)
        return Allocation([Output(0, 0, change(call))], (), 0)

    return rule


def _broadcast(call: Call) -> Form:
    layout, source, made = call.layout, call.taken[0], call.made[0]
    old, new = layout.shape[source], layout.shape[made]
    return strides.spread(call.form(0), old, new, layout.size[source], layout.size[made])


def _transpose(call: Call) -> Form:
    layout, made = call.layout, call.made[0]
    axes = numbers(call.text, "axes") or ()
    return strides.transposed(call.form(0), axes, layout.shape[made], layout.size[made])


def _slice(call: Call) -> Form:
    steps = numbers(call.text, "strides") or ()
    return strides.sliced(call.form(0), steps, call.layout.shape[call.made[0]])


def _as_strided(call: Call) -> Form:
    given = numbers(call.text, "strides") or ()
    return strides.strided(given, call.layout.shape[call.made[0]])


def _split(call: Call) -> Allocation:
    shapes = [call.layout.shape[array] for array in call.made]
    return Allocation(
        [Output(0, 0, strides.part(call.form(0), shape)) for shape in shapes], (), 0
    )  # fmt: skip


def _reshape(call: Call) -> Allocation:
    old, new = call.layout.shape[call.taken[0]], call.layout.shape[call.made[0]]
    form = strides.reshaped(call.form(0), old, new)
    if form is None:
        return Allocation([call.new()])
    return Allocation([Output(0, 0, form)], (), 0)


def _contiguous(call: Call) -> Allocation:
    fits = call.capacity(call.taken[0]) <= call.layout.nbytes[call.made[0]] + SPARE
    # Whether columns would do too is not told; `mx.contiguous` asks for rows.
    if fits and call.form(0).row:
        return Allocation([Output(0, 0, call.form(0))], (), 0)
    return Allocation([call.new()])


def _depends(call: Call) -> Allocation:
    return Allocation([Output(i, 0, call.form(i)) for i in range(len(call.made))], (), 0)


def _custom_transforms(call: Call) -> Allocation:
    first = len(call.taken) - len(call.made)
    places = range(first, len(call.taken))
    return Allocation([Output(place, 0, call.form(place)) for place in places], (), 0)


def _bits(call: Call) -> Allocation:
    """``View``, as another dtype."""
    layout, form = call.layout, call.form(0)
    old, new = layout.itemsize[call.taken[0]], layout.itemsize[call.made[0]]
    if old == new:
        return Allocation([Output(0, 0, form)], (), 0)
    if form.row:
        return Allocation([Output(0, 0, packed(layout.shape[call.made[0]]))], (), 0)
    if new < old and form.strides[-1] == 1:
        steps = (*(stride * old // new for stride in form.strides[:-1]), 1)
        seen = form._replace(strides=steps, elements=form.elements * old // new)
        return Allocation([Output(0, 0, seen)], (), 0)
    return Allocation([call.new()])


RULES: dict[str, Rule] = {
    "Broadcast": _view(_broadcast),
    "BroadcastAxes": _view(_broadcast),
    "Copy": _view(lambda call: call.form(0)),
    "StopGradient": _view(lambda call: call.form(0)),
    "ExpandDims": _view(lambda c: strides.expanded(c.form(0), numbers(c.text, "axes") or ())),
    "Squeeze": _view(lambda c: strides.squeezed(c.form(0), numbers(c.text, "axes") or ())),
    "Transpose": _view(_transpose),
    "Slice": _view(_slice),
    "AsStrided": _view(_as_strided),
    "Split": _split,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Unflatten": _reshape,
    "Contiguous": _contiguous,
    "Depends": _depends,
    "CustomTransforms": _custom_transforms,
    "View": _bits,
}
