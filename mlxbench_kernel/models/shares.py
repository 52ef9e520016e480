"""Reads of each weight only what a rank holds of it.

mlx-lm splits a model after its weights were loaded: ``model.shard(group)`` cuts lazy arrays, and
when they are evaluated each is read whole. Here the cuts are noted (`mlx.nn.layers.distributed.
_shard` of MLX 0.32.4), and what was cut from an array that is as in the file is read directly.
Weights that mlx-lm changes on the way (``sanitize``: stacked experts, fused projections) are read
whole, as always. So are all of them with an MLX that has no `_shard`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn.layers.distributed as layers
import numpy as np
from mlx.utils import tree_map_with_path

# By the names of the format: what NumPy reads, and what MLX makes of it. Others are read whole.
_KINDS: dict[str, tuple[str, mx.Dtype]] = {
    "BF16": ("<u2", mx.bfloat16), "F16": ("<f2", mx.float16), "F32": ("<f4", mx.float32),
    "U8": ("u1", mx.uint8), "I8": ("i1", mx.int8), "U16": ("<u2", mx.uint16),
    "I16": ("<i2", mx.int16), "U32": ("<u4", mx.uint32), "I32": ("<i4", mx.int32),
}  # fmt: skip

MOST = 2**30  # bytes of a read: macOS refuses those of 2 GiB and more

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Place:
    """Where an array lies in a file.

    Attributes
    ----------
    file
        Of safetensors.
    offset
        Of its first byte from the file's beginning.
    dtype, shape
        As in the header.
    """

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """A part of an array in a file.

    Attributes
    ----------
    place
        Of the whole array.
    axis
        Along which it is cut.
    ranges
        First index and end of the pieces that make up the part, in order.
    """

    place: Place
    axis: int
    ranges: Ranges

    def read(self) -> mx.array:
        """The part, from the file; nothing else of the array is read."""
        shape, kind = self.place.shape, _KINDS[self.place.dtype]
        item = np.dtype(kind[0]).itemsize
        outer, inner = math.prod(shape[: self.axis]), math.prod(shape[self.axis + 1 :]) * item
        length = sum(end - begin for begin, end in self.ranges)
        data = bytearray(outer * length * inner)
        into, at = memoryview(data), 0
        file = os.open(self.place.file, os.O_RDONLY)
        try:
            for row in range(outer):
                start = self.place.offset + row * shape[self.axis] * inner
                for begin, end in self.ranges:
                    size = (end - begin) * inner
                    _read_into(file, into[at : at + size], start + begin * inner)
                    at += size
        finally:
            os.close(file)
        part = (*shape[: self.axis], length, *shape[self.axis + 1 :])
        found = mx.array(np.frombuffer(data, kind[0]).reshape(part))
        return found if found.dtype == kind[1] else found.view(kind[1])


class Shares:
    """What is known of a model's arrays while it is loaded and split.

    Attributes
    ----------
    whole : dict of int to Place
        Of arrays as in a file, by ``id``.
    """

    def __init__(self) -> None:
        self.whole: dict[int, Place] = {}
        self._cut: dict[int, Share] = {}
        self._sizes: dict[int, int] = {}  # of what is read for an array that was cut
        self._alive: list[mx.array] = []  # so that no id is used twice

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is loaded (``mx.load``) and cut in the block."""
        load, shard = mx.load, getattr(layers, "_shard", None)
        mx.load = self._loading(load)
        if shard is not None:
            layers._shard = self._cutting(shard)
        try:
            yield
        finally:
            mx.load = load
            if shard is not None:
                layers._shard = shard

    def of(self, array: mx.array) -> Share | None:
        """How an array was cut from one in a file; None where that is not known."""
        return self._cut.get(id(array))

    def read_bytes(self, array: mx.array) -> int:
        """Bytes that are read of the files for an array."""
        return self._sizes.get(id(array), array.nbytes)

    def _loading(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def noting(file: Any, *arguments: Any, **keywords: Any) -> Any:
            found = load(file, *arguments, **keywords)
            if isinstance(file, (str, Path)) and isinstance(found, dict):
                places = read_places(str(file))
                for name, array in found.items():
                    if name in places and places[name].dtype in _KINDS:
                        self.whole[id(array)] = places[name]
                        self._alive.append(array)
            return found

        return noting

    def _cutting(self, shard: Callable[..., Any]) -> Callable[..., Any]:
        def noting(parameters: Any, predicate: Callable[..., Any], group: Any = None) -> Any:
            found = shard(parameters, predicate, group)
            group = group or mx.distributed.init()

            def note(path: str, array: Any, before: Any) -> Any:
                place = self.whole.get(id(before))
                how = predicate(path, before) if isinstance(before, mx.array) else None
                if how is not None:
                    self._alive.append(array)
                if place is None and how is not None:
                    self._sizes[id(array)] = before.nbytes
                elif place is not None and how is not None:
                    axis, segments = (how, 1) if isinstance(how, int) else how
                    axis %= len(place.shape)
                    ranges = cut(place.shape[axis], segments, group.rank(), group.size())
                    self._cut[id(array)] = Share(place, axis, ranges)
                return array

            tree_map_with_path(note, found, parameters)
            return found

        return noting


def cut(length: int, segments: int | Sequence[int | float], rank: int, size: int) -> Ranges:
    """The indices of an axis that a rank has, as ``mlx.nn.layers.distributed._shard`` cuts it.

    Parameters
    ----------
    length
        Of the axis.
    segments
        Of which each is cut by itself: their number, or where all but the first begin (whole
        numbers, or parts of the length).
    rank, size
        Of the group.
    """
    if isinstance(segments, int):
        edges = [length * number // segments for number in range(segments + 1)]
    else:
        inner = [at if isinstance(at, int) else int(at * length) for at in segments]
        edges = [0, *inner, length]
    ranges = []
    for begin, end in pairwise(edges):
        part = (end - begin) // size
        ranges.append((begin + rank * part, begin + (rank + 1) * part))
    return tuple(ranges)


def read_places(file: str) -> dict[str, Place]:
    """Where the arrays of a safetensors file lie, by name.

    From the format's description (github.com/huggingface/safetensors, "Format"): eight bytes with
    the length of a JSON header, little-endian; the header; the data.
    """
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    return {
        name: Place(file, 8 + size + about["data_offsets"][0], about["dtype"], (*about["shape"],))
        for name, about in header.items()
        if name != "__metadata__"
    }


def _read_into(file: int, into: memoryview, offset: int) -> None:
    while len(into):
        count = os.preadv(file, [into[:MOST]], offset)
        if count == 0:
            raise OSError("the file ends before its arrays do")
        into, offset = into[count:], offset + count
