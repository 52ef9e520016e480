"""Peak memory of a captured graph, predicted before it runs.

Follows MLX 0.32.4 on a CPU stream, also for what runs on a GPU: the order of ``eval_impl``
(``mlx/transforms.cpp``), donation (``mlx/backend/common``), and buffers that stay until the task
that used them has run (``mlx/backend/cpu/encoder.h``). Execution is taken to be slower than
dispatch, which holds where arrays are large enough to matter. On a GPU buffers stay as long as
their command buffer, so more is taken: on an H100 what was measured is 1.0 to 1.4 times the
prediction for convolutional networks, up to 1.6 times for an MLP, 0.9 to 3.7 times for Llamas
(most where least is taken).
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.exports import line_of
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.strides import Layout
from mlxbench_kernel.units import format_bytes

ALIVE_SHOWN = 12

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
    graph
        What is evaluated.
    """

    graph: Graph
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

    def __str__(self) -> str:
        """The peak, where it is, and the largest arrays that are alive there."""
        if self.at < 0:
            return "nothing is left to evaluate: no memory is needed"
        graph, alive = self.graph, self.alive(self.at)
        lines = [
            f"{format_bytes(self.peak)} more than now, at operation {self.at + 1:,} of "
            f"{len(self.order):,} (predicted): {line_of(graph, int(self.order[self.at]))}",
            f"{len(alive):,} arrays are alive there:",
        ]
        for array, size in alive[:ALIVE_SHOWN]:
            lines.append(f"{format_bytes(size):>10}  {line_of(graph, int(graph.node[array]))}")
        if len(alive) > ALIVE_SHOWN:
            lines.append(f"{'':>10}  and {len(alive) - ALIVE_SHOWN:,} more")
        return "\n".join(lines)

    def thinned(self, most: int = 2000) -> NDArray[np.int64]:
        """Indices into `order` that show the timeline with fewer points, its extremes kept.

        Returns
        -------
        int64
            Ascending; among them the highest and the lowest of each stretch, and `at`.
        """
        count = len(self.timeline)
        if count <= most:
            return np.arange(count)
        edges = np.linspace(0, count, most // 2 + 1).astype(np.int64)
        kept = [self.at, 0, count - 1]
        for begin, end in itertools.pairwise(edges.tolist()):
            stretch = self.timeline[begin:end]
            kept += [begin + int(stretch.argmax()), begin + int(stretch.argmin())]
        return np.unique(kept)


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
    """Predict the peak memory of evaluating a graph's outputs, as MLX's CPU backend does it.

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
    layout = Layout(graph)
    waiting: deque[tuple[int, list[int]]] = deque()
    timeline, dispatched, done = [], 0, 0
    start, inputs = graph.input_start.tolist(), graph.inputs.tolist()
    for now, node in enumerate(sequence):
        name, taken = graph.primitive_name(node), inputs[start[node] : start[node + 1]]
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
                        and layout.elements[d] * layout.itemsize[array] == nbytes[array] > 0
                        and memory.size[buffer_of[d]] <= nbytes[array] + 16384
                        and layout.itemsize[d] == layout.itemsize[array]
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
        graph=graph,
        peak=max(int(line[at]), 0) if len(line) else 0,
        baseline=baseline,
        order=np.array(sequence, np.int32),
        timeline=line,
        at=at,
        _spans=tuple(span for span in spans if span[2] >= 0),
    )
