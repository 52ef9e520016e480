"""How arrays lie in their buffers while a graph is evaluated: it decides about copies and views.

Follows ``mlx/backend/common`` (``common.cpp``, ``slicing.cpp``, ``broadcasting.cpp``) of MLX
0.32.4. Of evaluated arrays a graph has no strides: they are taken to be row-contiguous.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from mlxbench_kernel.graph.model import Graph

Shape = tuple[int, ...]


class Form(NamedTuple):
    """How an array lies in its buffer, as ``array::Flags`` and what stands beside them say.

    Attributes
    ----------
    strides
        In elements.
    elements
        ``data_size``: elements between the first and the last one, which a broadcast array has
        fewer of than its shape says.
    contiguous
        Whether all of these elements belong to the array.
    row, col
        Whether the last, or the first, axis runs fastest, without holes.
    """

    strides: Shape
    elements: int
    contiguous: bool
    row: bool
    col: bool


class Layout:
    """Shapes and sizes of a graph's arrays, and how they lie.

    Attributes
    ----------
    shape, size, itemsize, nbytes : list [arrays]
        `size` in elements.
    form : list of Form [arrays]
        Of arrays that are computed, as if they were new, until somebody writes another one.
    """

    def __init__(self, graph: Graph) -> None:
        self._dtypes, self._dtype = graph.dtypes, graph.dtype
        starts, extents = graph.shape_start.tolist(), graph.extents.tolist()
        self.shape: list[Shape] = [tuple(extents[a:b]) for a, b in itertools.pairwise(starts)]
        self.form = [packed(shape) for shape in self.shape]
        self.size = [form.elements for form in self.form]
        self.nbytes: list[int] = graph.nbytes.tolist()
        widths = [_width(name) for name in graph.dtypes]
        self.itemsize: list[int] = [widths[dtype] for dtype in graph.dtype.tolist()]
        for array in (graph.buffer_bytes > 0).nonzero()[0].tolist():
            if 0 < int(graph.buffer_bytes[array]) <= self.nbytes[array] - self.itemsize[array]:
                # Evaluated and smaller than its shape: broadcast, along which axes is not known.
                few = int(graph.buffer_bytes[array]) // self.itemsize[array]
                flat = (0,) * len(self.shape[array])
                self.form[array] = Form(flat, few, True, False, False)

    def dtype(self, array: int) -> str:
        """The dtype of an array, as ``float32``."""
        return self._dtypes[int(self._dtype[array])]


@lru_cache(maxsize=65536)
def packed(shape: Shape) -> Form:
    """A new array's: row-contiguous."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    col = step <= 1 or max(shape) == step
    return Form(tuple(reversed(strides)), step, True, True, col)


@lru_cache(maxsize=65536)
def numbers(text: str, name: str) -> tuple[int, ...] | None:
    """The numbers of an argument in `Graph.arguments_text`; None where MLX does not tell it.

    Parameters
    ----------
    text
        As ``indices=[2], axis=0``.
    name
        As ``axis``.
    """
    found = re.search(rf"(?:^|, ){name}=(\[[^\]]*\]|[^,]*)", text)
    return None if found is None else tuple(int(each) for each in re.findall(r"-?\d+", found[1]))


@lru_cache(maxsize=65536)
def transposed(form: Form, axes: Shape, shape: Shape, size: int) -> Form:
    """After ``Transpose`` to `shape`."""
    strides = tuple(form.strides[axis] for axis in axes)
    if not form.contiguous or form.elements != size:
        return form._replace(strides=strides)
    _, row, col = _checked(shape, strides)
    return form._replace(strides=strides, row=row, col=col)


def by_columns(form: Form) -> Form:
    """A new array whose last two axes lie the other way round, as LAPACK leaves them."""
    *lead, row, column = form.strides
    if form.elements <= 1:
        return form
    return form._replace(strides=(*lead, column, row), row=False, col=not lead)


@lru_cache(maxsize=65536)
def spread(form: Form, old: Shape, new: Shape, size: int, new_size: int) -> Form:
    """After ``Broadcast`` from shape `old` to `new`."""
    lead = (0,) * (len(new) - len(old))
    strides = tuple(
        0 if extent == 1 else stride for extent, stride in zip(old, form.strides, strict=True)
    )
    grown = new_size > size
    row, col = form.row and not grown, form.col and not grown
    return form._replace(strides=lead + strides, row=row, col=col)


def expanded(form: Form, axes: Sequence[int]) -> Form:
    """After ``ExpandDims``."""
    strides = list(form.strides)
    for axis in axes:
        strides.insert(axis, 1)
    return form._replace(strides=tuple(strides))


def squeezed(form: Form, axes: Sequence[int]) -> Form:
    """After ``Squeeze``."""
    gone = set(axes)
    return form._replace(strides=tuple(s for i, s in enumerate(form.strides) if i not in gone))


def sliced(form: Form, steps: Sequence[int], shape: Shape) -> Form:
    """After ``Slice`` with these steps to `shape`."""
    strides = tuple(s * step for s, step in zip(form.strides, steps, strict=True))
    return _windowed(strides, shape)


def strided(strides: Shape, shape: Shape) -> Form:
    """After ``AsStrided``."""
    form = _windowed(strides, shape)
    backwards = any(s < 0 and extent > 1 for s, extent in zip(strides, shape, strict=True))
    return form._replace(contiguous=form.contiguous and not backwards)


def part(form: Form, shape: Shape) -> Form:
    """One of the results of ``Split``."""
    elements, row, col = _checked(shape, form.strides)
    if elements == 1:
        whole = True
    elif elements == form.elements:
        whole = form.contiguous
    else:
        whole = form.contiguous and (row or col)
    return Form(form.strides, elements, whole, row, col)


@lru_cache(maxsize=65536)
def reshaped(form: Form, old: Shape, new: Shape) -> Form | None:
    """After a reshape; None where the elements have to be copied (``prepare_reshape``)."""
    fresh = packed(new)
    if form.row or fresh.elements == 0:
        return fresh._replace(elements=form.elements, contiguous=form.contiguous, row=form.row)
    if not old:
        return form._replace(strides=(0,) * len(new))
    extents, steps = [old[0]], [form.strides[0]]
    for extent, stride in zip(old[1:], form.strides[1:], strict=True):
        if extent == 1:
            continue
        if stride * extent == steps[-1]:
            extents[-1] *= extent
            steps[-1] = stride
        else:
            extents.append(extent)
            steps.append(stride)
    strides: list[int] = []
    at = 0
    for extent in new:
        if at < len(extents) and extents[at] % extent == 0:
            extents[at] //= extent
            strides.append(extents[at] * steps[at])
            at += extents[at] == 1
        elif extent == 1:
            strides.append(strides[-1])
        else:
            return None
    return form._replace(strides=tuple(strides))


def _windowed(strides: Shape, shape: Shape) -> Form:
    elements = 1 + sum(abs(s) * (e - 1) for s, e in zip(strides, shape, strict=True))
    own, row, col = _checked(shape, strides)
    return Form(strides, elements, own == elements, row, col)


def _checked(shape: Shape, strides: Shape) -> tuple[int, bool, bool]:
    """``check_contiguity``: elements that are not repeated, and whether rows or columns run on."""
    own, forward, backward = 1, 1, 1
    row = col = True
    for i in range(len(shape)):
        last = -1 - i
        col = col and (strides[i] == forward or shape[i] == 1)
        row = row and (strides[last] == backward or shape[last] == 1)
        forward *= shape[i]
        backward *= shape[last]
        if strides[i] > 0:
            own *= shape[i]
    return own, row, col


def _width(dtype: str) -> int:
    """Bytes of an element."""
    if dtype in ("", "bool"):
        return 1
    found = re.search(r"\d+$", dtype)
    return int(found[0]) // 8 if found else 1
