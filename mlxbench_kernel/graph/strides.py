"""Strides of arrays while a graph is evaluated, as far as they decide about copies and views."""

from __future__ import annotations

import itertools
import re

from mlxbench_kernel.graph.model import Graph

_RESHAPES = frozenset(("Reshape", "Flatten", "Unflatten", "Contiguous"))


class Layout:
    """Strides of arrays, as far as they decide about copies."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        starts = graph.shape_start.tolist()
        extents = graph.extents.tolist()
        self.shape = [tuple(extents[a:b]) for a, b in itertools.pairwise(starts)]
        self.strides = [packed(shape) for shape in self.shape]
        self._size = [size_of(shape) for shape in self.shape]
        self.elements = list(self._size)  # that the buffer has
        bytes_of = zip(graph.nbytes.tolist(), self._size, strict=True)
        self.itemsize = [nbytes // max(size, 1) for nbytes, size in bytes_of]

    def fresh(self, array: int) -> None:
        self.elements[array] = self._size[array]

    def view(self, node: int, name: str, taken: list[int], made: list[int]) -> bool:
        """Whether the outputs share the buffer of the input; notes their strides."""
        source, first = taken[0], made[0]
        strides, shape = self.strides[source], self.shape[source]
        if name in _RESHAPES:
            if strides != packed(shape):
                return False
            self.elements[first] = self.elements[source]
            return True
        axes = [int(a) for a in re.findall(r"-?\d+", self.graph.arguments_text(node))]
        for array in made:
            self.elements[array] = self.elements[source]
            if name == "Transpose":
                self.strides[array] = tuple(strides[axis] for axis in axes)
            elif name == "Broadcast":
                lead = len(self.shape[array]) - len(shape)
                self.strides[array] = (0,) * lead + tuple(
                    s if old == new else 0
                    for s, old, new in zip(strides, shape, self.shape[array][lead:], strict=True)
                )
            elif name == "AsStrided":
                text = self.graph.arguments_text(node).partition("strides=[")[2].split("]")[0]
                self.strides[array] = tuple(int(each) for each in re.findall(r"-?\d+", text))
            elif name in ("Slice", "Split"):
                self.strides[array] = strides
                self.elements[array] = min(self.elements[source], size_of(self.shape[array]))
        return True

    def temporaries(self, node: int, name: str, taken: list[int], made: list[int]) -> list[int]:
        """Bytes of the copies that a primitive makes beside its output."""
        if name in ("Matmul", "AddMM"):
            return [
                int(self.graph.nbytes[a])
                for a in taken[:2]
                if not _gemm_takes(self.shape[a], self.strides[a])
            ]
        if name == "Convolution" and not self.graph.device[node]:
            # Padded input and its patches (mlx/backend/cpu/conv.cpp), which GPUs do without.
            text = self.graph.arguments_text(node)
            dilated = re.search(r"dilation=\[[^\]]*([2-9]|\d\d)", text)
            if dilated or "groups=1," not in text:
                return []  # the slow convolution needs none
            given, weight, out = (self.shape[a] for a in (*taken, made[0]))
            low, high = (
                [int(each) for each in re.findall(r"\d+", text.partition(key)[2].split("]")[0])]
                for key in ("padding_low=[", "padding_high=[")
            )
            inside = [e + a + b for e, a, b in zip(given[1:-1], low, high, strict=True)]
            padded = given[0] * given[-1] * size_of(tuple(inside)) * 4
            copies = [padded, size_of(out[:-1]) * size_of(weight[1:]) * 4]
            straight = self.strides[taken[1]] == packed(weight)
            copies += [size_of(weight) * 4] * ((not straight) + ("flip=true" in text))
            return copies
        return []


def packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def size_of(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _gemm_takes(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether BLAS takes the matrices as they lie (``matmul_general``, ``cpu/matmul.cpp``)."""
    return strides[-2:] in ((shape[-1], 1), (1, shape[-2]))
