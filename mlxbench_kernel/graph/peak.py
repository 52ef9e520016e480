"""Peak memory of a captured graph, predicted before it runs.

Follows MLX 0.32.4 on CPU streams, also for what runs on a GPU: the order of ``eval_impl``
(``mlx/transforms.cpp``), what each primitive copies, shares and takes over (`allocation`), and
buffers that stay until the work that used them is done (``mlx/backend/cpu/encoder.h``). Execution
is taken to be slower than dispatch, which holds where arrays are large enough to matter; an
evaluation that has to compile a kernel first takes less. On a GPU buffers stay as long as their
command buffer, so more is taken: on an H100 1.0 to 1.3 times the prediction for convolutional
networks, up to 1.6 times for an MLP, 1.3 to 3.4 times for Llamas, most where least is taken
(``tests/benchmarks/graph_peak.py``).
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.allocation import allocation
from mlxbench_kernel.graph.buffers import NEW, Allocation, Call
from mlxbench_kernel.graph.exports import line_of
from mlxbench_kernel.graph.given import check_graph
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.strides import Layout
from mlxbench_kernel.units import format_bytes

ALIVE_SHOWN = 12

_DISPATCHES_PER_TASK = 10  # mlx/backend/cpu/encoder.h
_MAX_ACTIVE_TASKS = 10  # mlx/transforms.cpp


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
        """Arrays (number, bytes) allocated by the evaluation and alive at an index of `order`.

        The largest come first; the copies that an operation makes beside its results count to
        the first of these.
        """
        found: dict[int, int] = {}
        for array, size, begin, end in self._spans:
            if begin <= at < end:
                found[array] = found.get(array, 0) + size
        return sorted(found.items(), key=lambda each: -each[1])

    def __repr__(self) -> str:
        return f"<Prediction: {str(self).splitlines()[0]}>"

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
    """Buffers with the arrays and the waiting work that hold them."""

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


class _Streams:
    """Work that was given to streams and holds buffers until it is done.

    Ten dispatches to a stream are a task; the main thread waits for the oldest once more than
    ten are under way.
    """

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        self._scratch: dict[int, deque[tuple[int, int]]] = defaultdict(deque)
        self._waiting: dict[int, deque[tuple[int, list[int]]]] = defaultdict(deque)
        self._dispatched: dict[int, int] = defaultdict(int)
        self._tasks: deque[tuple[int, int]] = deque()  # the stream, and how many dispatches it had

    def give(self, stream: int, found: Allocation, held: list[int], now: int) -> None:
        """Give a node's dispatches to its stream; what is done then is released."""
        dispatches = found.dispatches + 1
        before = self._dispatched[stream]
        after = self._dispatched[stream] = before + dispatches
        self._waiting[stream].append((after, held))
        if found.scratch:
            self._scratch[stream].append((after, found.scratch))
        for task in range(before // _DISPATCHES_PER_TASK, after // _DISPATCHES_PER_TASK):
            self._tasks.append((stream, (task + 1) * _DISPATCHES_PER_TASK))
        while len(self._tasks) > _MAX_ACTIVE_TASKS:
            of, done = self._tasks.popleft()
            waiting = self._waiting[of]
            while waiting and waiting[0][0] <= done:
                for buffer in waiting.popleft()[1]:
                    self._memory.release(buffer, now)
            scratch = self._scratch[of] if self._scratch else None
            while scratch and scratch[0][0] <= done:
                scratch.popleft()

    def scratch(self) -> int:
        """The most that the streams may take at once for what they are computing."""
        if not self._scratch:
            return 0
        return sum(max((size for _, size in each), default=0) for each in self._scratch.values())


def predict(graph: Graph) -> Prediction:
    """Predict the peak memory of evaluating a graph's outputs, as MLX's CPU backend does it.

    What a captured call gives to ``mx.eval`` several times over is evaluated at once here, which
    takes up to twice as much.

    Parameters
    ----------
    graph
        As `capture` or `read` gives it.

    Raises
    ------
    UsageError
        It is no graph, or its shapes are not known (`Graph.complete` is False).
    """
    check_graph("predict", graph)
    if not graph.complete:
        raise UsageError(
            "this graph has no shapes, so its memory cannot be predicted: install a C++ compiler "
            "and capture it again"
        )
    return _Evaluation(graph).run()


class _Evaluation:
    """The evaluation of a graph, with nothing computed."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.layout, self.memory = graph, Layout(graph), _Memory()
        self.streams = _Streams(self.memory)
        self.users = np.bincount(graph.inputs, minlength=graph.arrays).tolist()
        stays = graph.held > 0
        self.stays: list[bool] = stays.tolist()
        self.buffer_of = self._evaluated()
        # As lists, of which single entries are read quicker.
        self._name = [graph.primitives[each] for each in graph.primitive.tolist()]
        self._text = [graph.texts[each] for each in graph.arguments.tolist()]
        self._first_input, self._inputs = graph.input_start.tolist(), graph.inputs.tolist()
        self._first_output = graph.output_start.tolist()
        self._stream, self._device = graph.stream.tolist(), graph.device.tolist()
        self.baseline = self.memory.live

    def _evaluated(self) -> list[int]:
        """The buffers of the arrays that have one already; -1 for the others."""
        graph, memory = self.graph, self.memory
        buffer_of, addresses = [-1] * graph.arrays, dict[int, int]()
        for array in np.flatnonzero(graph.buffer).tolist():
            address = int(graph.buffer[array])
            if address not in addresses:
                size = int(graph.buffer_bytes[array])
                addresses[address] = memory.allocate(size, array, -1)
            buffer_of[array] = addresses[address]
            memory.holders[addresses[address]] += 1
        return buffer_of

    def run(self) -> Prediction:
        graph, memory = self.graph, self.memory
        sequence = order(graph)
        timeline = [self._step(node, now) for now, node in enumerate(sequence)]
        line = np.array(timeline, np.int64)
        at = int(line.argmax()) if len(line) else -1
        spans = zip(memory.owner, memory.size, memory.begin, memory.end, strict=True)
        return Prediction(
            graph=graph,
            peak=max(int(line[at]), 0) if len(line) else 0,
            baseline=self.baseline,
            order=np.array(sequence, np.int32),
            timeline=line,
            at=at,
            _spans=tuple(span for span in spans if span[2] >= 0),
        )

    def _step(self, node: int, now: int) -> int:
        """Evaluate a node; the bytes above the beginning meanwhile."""
        graph, memory, layout, buffer_of = self.graph, self.memory, self.layout, self.buffer_of
        taken = self._inputs[self._first_input[node] : self._first_input[node + 1]]
        made = list(range(self._first_output[node], self._first_output[node + 1]))
        # Each output of a node keeps its inputs, so that of several none may be taken over.
        free = self._is_free if len(made) == 1 else _never
        found = allocation(
            Call(
                layout,
                self._name[node],
                self._text[node],
                bool(self._device[node]),
                node in graph.fused,
                taken,
                made,
                free,
                self._capacity,
            )
        )
        for array, output in zip(made, found.outputs, strict=True):
            layout.form[array] = output.form
            if output.source == NEW:
                buffer_of[array] = memory.allocate(output.nbytes, array, now)
            else:
                buffer_of[array] = buffer_of[taken[output.source]]
            memory.holders[buffer_of[array]] += 1
        own = buffer_of[made[0]]
        held = [memory.allocate(size, made[0], now) for size in found.temporaries]
        for array in (*taken, *made[1:]):
            buffer = buffer_of[array]
            if buffer not in (own, -1) and buffer not in held:
                held.append(buffer)
        for buffer in held:
            memory.holders[buffer] += 1
        live = memory.live - self.baseline + max(self.streams.scratch(), found.scratch)
        self.streams.give(self._stream[node], found, held, now + 1)
        users, stays = self.users, self.stays
        for array in taken:
            users[array] -= 1
            if users[array] == 0 and not stays[array] and buffer_of[array] >= 0:
                memory.release(buffer_of[array], now + 1)
                buffer_of[array] = -1
        for array in made:
            if users[array] == 0 and not stays[array]:
                memory.release(buffer_of[array], now + 1)
                buffer_of[array] = -1
        return live

    def _is_free(self, array: int) -> bool:
        """``array::is_donatable``: nothing else needs the array, nor its buffer."""
        buffer = self.buffer_of[array]
        alone = buffer >= 0 and self.memory.holders[buffer] == 1
        return alone and self.users[array] == 1 and not self.stays[array]

    def _capacity(self, array: int) -> int:
        buffer = self.buffer_of[array]
        return self.memory.size[buffer] if buffer >= 0 else 0


def _never(array: int) -> bool:
    return False
