"""Peak memory of a captured graph, predicted before it runs.

Follows MLX 0.32.4 on a CPU stream: the order of ``eval_impl`` (``mlx/transforms.cpp``), donation
(``mlx/backend/common``), and buffers that stay until the task that used them has run
(``mlx/backend/cpu/encoder.h``). Execution is taken to be slower than dispatch, which holds where
arrays are large enough to matter.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.model import Graph

_DISPATCHES_PER_TASK = 10  # mlx/backend/cpu/encoder.h
_MAX_ACTIVE_TASKS = 10  # mlx/transforms.cpp
_SHARES = frozenset(
    [
        "Broadcast",
        "BroadcastAxes",
        "Copy",
        "CustomTransforms",
        "Depends",
        "ExpandDims",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "AsStrided",
        "Reshape",
        "Flatten",
        "Unflatten",
        "Contiguous",
    ]
)
_RESHAPES = frozenset(("Reshape", "Flatten", "Unflatten", "Contiguous"))
_NEVER_DONATED = frozenset(
    [
        "Matmul",
        "AddMM",
        "GatherMM",
        "QuantizedMatmul",
        "Convolution",
        "Sum",
        "Prod",
        "Max",
        "Min",
        "And",
        "Or",
        "ArgReduce",
        "Gather",
        "GatherAxis",
        "Concatenate",
        "Pad",
        "Full",
        "Arange",
        "RandomBits",
        "Sort",
        "ArgSort",
        "Partition",
        "ArgPartition",
        "FFT",
        "CumSum",
        "CumProd",
        "CumMax",
        "CumMin",
        "NumberOfElements",
        "Load",
        "DynamicSlice",
    ]
)


@dataclass(frozen=True)
class Prediction:
    """What evaluating a graph is expected to allocate, in bytes.

    Attributes
    ----------
    peak
        The most above what is allocated at the beginning.
    baseline
        Buffers of evaluated arrays that the graph reaches.
    order : int32 [evaluated]
        Nodes, in MLX's order of evaluation.
    timeline : int64 [evaluated]
        Bytes above the beginning while each of them is evaluated.
    at
        Index of the peak in `order`; -1 where nothing is evaluated.
    """

    peak: int
    baseline: int
    order: NDArray[np.int32]
    timeline: NDArray[np.int64]
    at: int
    _spans: tuple[tuple[int, int, int, int], ...]

    def alive(self, at: int) -> list[tuple[int, int]]:
        """Arrays (number, bytes) allocated by the evaluation and alive at an index of `order`."""
        found = [(array, size) for array, size, begin, end in self._spans if begin <= at < end]
        return sorted(found, key=lambda each: -each[1])


def order(graph: Graph) -> list[int]:
    """The nodes in the order in which ``eval_impl`` evaluates them (``mlx/transforms.cpp``)."""
    width = int(os.environ.get("MLX_BFS_MAX_WIDTH", "20"))
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    ready = (graph.primitive == 0).tolist()
    roots = graph.node[graph.outputs].tolist()
    degree = (
        np.bincount(graph.sources, minlength=graph.nodes)
        + np.bincount(np.array(roots, np.int64), minlength=graph.nodes)
    ).tolist()
    needs = [roots]
    tape, stack, position = [-1], list[tuple[int, int]](), 0
    while position < len(tape) or stack:
        if position < len(tape):
            node, edge = tape[position], 0
            position += 1
        else:
            node, edge = stack.pop()
        taken = needs[0] if node < 0 else sources[start[node] : start[node + 1]]
        for number in range(edge, len(taken)):
            source = taken[number]
            if ready[source]:
                continue
            if len(tape) - position >= width:
                stack.append((node, number))
                break
            degree[source] -= 1
            if degree[source] == 0:
                tape.append(source)
    return tape[:0:-1]


class _Memory:
    """Buffers with the arrays and the waiting tasks that hold them."""

    def __init__(self) -> None:
        self.size: list[int] = []
        self.holders: list[int] = []
        self.owner: list[int] = []
        self.begin: list[int] = []
        self.end: list[int] = []
        self.live = 0

    def allocate(self, size: int, array: int, now: int) -> int:
        self.size.append(size)
        self.holders.append(0)
        self.owner.append(array)
        self.begin.append(now)
        self.end.append(1 << 60)
        self.live += size
        return len(self.size) - 1

    def release(self, buffer: int, now: int) -> None:
        self.holders[buffer] -= 1
        if self.holders[buffer] == 0:
            self.live -= self.size[buffer]
            self.end[buffer] = now


def predict(graph: Graph) -> Prediction:
    """Predict the peak memory of evaluating a graph's outputs.

    Raises
    ------
    UsageError
        If shapes are not known (`Graph.complete` is False).
    """
    if not graph.complete:
        raise UsageError(
            "this graph has no shapes, so its memory cannot be predicted: install a C++ compiler "
            "and capture it again"
        )
    sequence = order(graph)
    memory, nbytes = _Memory(), graph.nbytes.tolist()
    buffer_of, addresses = [-1] * graph.arrays, dict[int, int]()
    for array in np.flatnonzero(graph.buffer).tolist():
        address = int(graph.buffer[array])
        if address not in addresses:
            size = int(graph.buffer_bytes[array])
            addresses[address] = memory.allocate(size, array, -1)
        buffer_of[array] = addresses[address]
        memory.holders[addresses[address]] += 1
    baseline = memory.live
    users = np.bincount(graph.inputs, minlength=graph.arrays).tolist()
    stays = graph.held > 0
    stays[graph.outputs] = True
    stays = stays.tolist()
    layout = _Layout(graph)
    waiting: deque[tuple[int, list[int]]] = deque()
    timeline, dispatched, done = [], 0, 0
    for now, node in enumerate(sequence):
        name, taken = graph.primitive_name(node), graph.inputs_of(node).tolist()
        made = list(graph.outputs_of(node))
        shared = name in _SHARES and layout.view(node, name, taken, made)
        donors = [] if shared or name in _NEVER_DONATED else list(dict.fromkeys(taken))
        temporaries: list[int] = []
        for place, array in enumerate(made):
            if shared:
                source = taken[-len(made) + place] if name == "CustomTransforms" else taken[0]
                if name == "Depends":
                    source = taken[place]
                buffer_of[array] = buffer_of[source]
            else:
                donor = next(
                    (
                        d
                        for d in donors
                        if users[d] == 1
                        and not stays[d]
                        and memory.holders[buffer_of[d]] == 1
                        and layout.elements[d] * layout.item(array) == nbytes[array] > 0
                        and memory.size[buffer_of[d]] <= nbytes[array] + 16384
                        and layout.item(d) == layout.item(array)
                    ),
                    None,
                )
                if donor is None:
                    buffer_of[array] = memory.allocate(nbytes[array], array, now)
                else:
                    donors.remove(donor)
                    buffer_of[array] = buffer_of[donor]
                layout.fresh(array)
            memory.holders[buffer_of[array]] += 1
        for size in layout.temporaries(node, name, taken, made):
            temporaries.append(memory.allocate(size, made[0], now))
        own = buffer_of[made[0]]
        kept = {buffer_of[a] for a in (*taken, *made[1:]) if buffer_of[a] not in (own, -1)}
        for buffer in (*kept, *temporaries):
            memory.holders[buffer] += 1
        timeline.append(memory.live - baseline)
        dispatched += (1 if shared else 2) + len(temporaries)
        waiting.append((dispatched, [*kept, *temporaries]))
        # The main thread waits for the oldest task once more than ten are under way.
        done = max(done, dispatched // _DISPATCHES_PER_TASK - _MAX_ACTIVE_TASKS)
        while waiting and waiting[0][0] <= done * _DISPATCHES_PER_TASK:
            for buffer in waiting.popleft()[1]:
                memory.release(buffer, now + 1)
        for array in taken:
            users[array] -= 1
        for array in (*dict.fromkeys(taken), *made):
            if users[array] == 0 and not stays[array] and buffer_of[array] >= 0:
                memory.release(buffer_of[array], now + 1)
                buffer_of[array] = -1
    line = np.array(timeline, np.int64)
    at = int(line.argmax()) if len(line) else -1
    spans = zip(memory.owner, memory.size, memory.begin, memory.end, strict=True)
    return Prediction(
        peak=max(int(line[at]), 0) if len(line) else 0,
        baseline=baseline,
        order=np.array(sequence, np.int32),
        timeline=line,
        at=at,
        _spans=tuple(span for span in spans if span[2] >= 0),
    )


class _Layout:
    """Strides of arrays, as far as they decide about copies."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        starts = graph.shape_start.tolist()
        extents = graph.extents.tolist()
        self.shape = [tuple(extents[a:b]) for a, b in itertools.pairwise(starts)]
        self.strides = [_packed(shape) for shape in self.shape]
        self.elements = [_size(shape) for shape in self.shape]  # that the buffer has

    def item(self, array: int) -> int:
        return int(self.graph.nbytes[array]) // max(_size(self.shape[array]), 1)

    def fresh(self, array: int) -> None:
        self.elements[array] = _size(self.shape[array])

    def view(self, node: int, name: str, taken: list[int], made: list[int]) -> bool:
        """Whether the outputs share the buffer of the input; notes their strides."""
        source, first = taken[0], made[0]
        strides, shape = self.strides[source], self.shape[source]
        if name in _RESHAPES:
            if strides != _packed(shape):
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
                self.elements[array] = min(self.elements[source], _size(self.shape[array]))
        return True

    def temporaries(self, node: int, name: str, taken: list[int], made: list[int]) -> list[int]:
        """Bytes of the copies that a primitive makes beside its output."""
        if name in ("Matmul", "AddMM"):
            return [
                int(self.graph.nbytes[a])
                for a in taken[:2]
                if not _gemm_takes(self.shape[a], self.strides[a])
            ]
        if name == "Convolution":  # padded input and its patches (mlx/backend/cpu/conv.cpp)
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
            padded = given[0] * given[-1] * _size(tuple(inside)) * 4
            copies = [padded, _size(out[:-1]) * _size(weight[1:]) * 4]
            straight = self.strides[taken[1]] == _packed(weight)
            copies += [_size(weight) * 4] * ((not straight) + ("flip=true" in text))
            return copies
        return []


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _gemm_takes(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether BLAS takes the matrices as they lie (``matmul_general``, ``cpu/matmul.cpp``)."""
    return strides[-2:] in ((shape[-1], 1), (1, shape[-2]))
