"""Bytes that primitives read and write.

What stands for itself elsewhere: a view moves nothing, an array that was broadcast is as large as
what it was broadcast from, and an input that is taken twice is read once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlxbench_kernel.graph import sharing
from mlxbench_kernel.graph.allocation import allocation
from mlxbench_kernel.graph.buffers import NEW, Allocation, Call
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.strides import Layout

Moved = tuple[int, int]  # read, written

# What is picked by indices: of which inputs, and how many axes of them belong together.
_PICKED = {"GatherMM": (0, 1), "GatherQMM": (0, 1, 2, 3), "GatherQQMM": (0, 1, 2, 3)}
_WRITTEN_INTO = ("Scatter", "ScatterAxis", "MaskedScatter", "SliceUpdate", "DynamicSliceUpdate")


class Traffic:
    """What nodes move, one after the other.

    Parameters
    ----------
    graph
        With shapes.
    """

    def __init__(self, graph: Graph) -> None:
        self.layout = layout = Layout(graph)
        self._own = graph.nbytes.tolist()  # of a view what it is seen of
        for array in np.flatnonzero(graph.buffer_bytes > 0).tolist():
            self._own[array] = min(self._own[array], int(graph.buffer_bytes[array]))
        users = np.bincount(graph.inputs, minlength=graph.arrays)
        alone = (users == 1) & (graph.held == 0)
        alone[graph.outputs] = False
        self._alone: list[bool] = alone.tolist()
        self._straight = [
            form.row and form.elements == size
            for form, size in zip(layout.form, layout.size, strict=True)
        ]
        self._fused, self._device = graph.fused, graph.device.tolist()

    def of(self, node: int, name: str, text: str, taken: list[int], made: list[int]) -> Moved:
        """Bytes that a node reads and writes.

        Parameters
        ----------
        node, name, text
            Its number, primitive and arguments.
        taken, made
            Its inputs and outputs.
        """
        family = name.partition(" ")[0]
        own, layout = self._own, self.layout
        found = None
        if (
            family in sharing.RULES
            or family in _WRITTEN_INTO
            or not all(self._straight[array] for array in taken)
        ):
            found = self._allocated(node, name, text, taken, made)
            if found.dispatches == 0 and not found.scratch and made:  # nothing is done
                for array, output in zip(made, found.outputs, strict=True):
                    if output.source != NEW:
                        own[array] = min(layout.nbytes[array], own[taken[output.source]])
                return 0, 0
        if family in _WRITTEN_INTO and found is not None:
            return self._into(family, name, found, taken, made)
        written = sum(own[array] for array in made)
        if family in ("Gather", "GatherAxis", "DynamicSlice"):
            # Only what is picked, and the indices.
            return written + sum(own[array] for array in taken[1:]), written
        read = sum(own[array] for array in dict.fromkeys(taken))
        if family in _PICKED:
            read = self._picked(family, taken, made)
        return read, 0 if family == "Send" else written

    def _allocated(
        self, node: int, name: str, text: str, taken: list[int], made: list[int]
    ) -> Allocation:
        """How the outputs lie; what is not needed afterwards is taken over."""
        layout = self.layout
        on_gpu, fused = bool(self._device[node]), node in self._fused
        free, capacity = self._alone.__getitem__, layout.nbytes.__getitem__
        call = Call(layout, name, text, on_gpu, fused, taken, made, free, capacity)
        found = allocation(call)
        for array, output in zip(made, found.outputs, strict=True):
            layout.form[array] = form = output.form
            self._straight[array] = form.row and form.elements == layout.size[array]
            seen = form.elements * layout.itemsize[array]
            self._own[array] = min(layout.nbytes[array], seen)
        return found

    def _into(
        self, family: str, name: str, found: Allocation, taken: list[int], made: list[int]
    ) -> Moved:
        """Of what is written into an array, which is copied first if others need it."""
        own = self._own
        updates = taken[1] if "Slice" in family else taken[-1]
        put = min(self.layout.nbytes[updates], self.layout.nbytes[made[0]])
        read = sum(own[array] for array in dict.fromkeys(taken[1:]))
        if name != family:  # with a reduction, as "Scatter Sum": what is there is read too
            read += put
        if found.outputs[0].source == NEW:
            return read + own[taken[0]], put + own[made[0]]
        return read, put

    def _picked(self, family: str, taken: Sequence[int], made: Sequence[int]) -> int:
        """Of matrices those that indices name, as often as they do, at most all of them."""
        layout, own = self.layout, self._own
        times = math.prod(layout.shape[made[0]][:-2])
        matrices = [place for place in _PICKED[family] if place < len(taken) - 2]
        read: int = sum(own[array] for place, array in enumerate(taken) if place not in matrices)
        for place in matrices:
            array = taken[place]
            each = math.prod(layout.shape[array][-2:]) * layout.itemsize[array]
            read += min(own[array], times * each)
        return read
