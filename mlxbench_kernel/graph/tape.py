"""The forward operations of a graph as MLX differentiates them, the last one first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Graph


class Tape:
    """Plain lists of a graph, for searches that look at one node after the other.

    Parameters
    ----------
    graph, forward, held
        As in `adjoint.Backward`.

    Attributes
    ----------
    forward : list of bool
        Whether a node is a forward operation.
    name : list of str
        The primitive of each node.
    size : list of int
        How many elements the first output of each node has.
    shape : list of bytes
        The shape of the first output of each node; equal bytes for equal shapes.
    rank : list of int
        The higher it is, the earlier an operation was differentiated.
    in_order : bool
        Whether ranks are in the order of the nodes.
    """

    def __init__(self, graph: Graph, forward: NDArray[np.bool_], held: NDArray[np.bool_]) -> None:
        self._start: list[int] = graph.input_start.tolist()
        self._sources: list[int] = graph.sources.tolist()
        self.forward: list[bool] = forward.tolist()
        self.name = [graph.primitives[each] for each in graph.primitive.tolist()]
        sizes, self.shape = _extents(graph)
        self.size: list[int] = sizes.tolist()
        used = np.flatnonzero(forward[graph.targets])
        used = used[np.argsort(graph.sources[used], kind="stable")]
        self._users: list[int] = graph.targets[used].tolist()
        places = np.searchsorted(graph.sources[used], np.arange(graph.nodes + 1))
        self._users_start: list[int] = places.tolist()
        named = {int(graph.node[array]) for array in graph.names}
        self._unnamed = set(np.flatnonzero(graph.primitive == 0).tolist()) - named
        self.in_order = "Depends" not in graph.primitives
        self.rank = self._ranks()
        self._passes = self._passing(held.tolist()) if held.any() else self.forward

    def users(self, node: int) -> list[int]:
        """The forward operations that take what a node gives."""
        return self._users[self._users_start[node] : self._users_start[node + 1]]

    def count(self, node: int) -> int:
        """How many forward operations take what a node gives."""
        return self._users_start[node + 1] - self._users_start[node]

    def taken(self, node: int) -> list[int]:
        """The nodes that an operation takes something of."""
        return self._sources[self._start[node] : self._start[node + 1]]

    def is_constant(self, node: int) -> bool:
        """Whether it is a number in the program; equal ones are one after ``mx.compile``."""
        return self.size[node] == 1 and node in self._unnamed

    def _passing(self, held: list[bool]) -> list[bool]:
        """Which forward operations depend on parameters."""
        depends, forward = held, self.forward
        for node in range(len(forward)):
            if forward[node] and not depends[node]:
                depends[node] = any(depends[source] for source in self.taken(node))
        return [one and other for one, other in zip(depends, forward, strict=True)]

    def _ranks(self) -> list[int]:
        """In which order operations were differentiated, the last ones first.

        What a checkpoint computes again is differentiated in place of the checkpoint itself, which
        the new inputs are made to depend on.
        """
        wide = len(self.forward) + 1
        ranks: list[int] = (np.arange(1, wide) * wide).tolist()
        checkpoint: dict[int, int] = {}
        if self.in_order:
            return ranks
        for node, is_forward in enumerate(self.forward):
            if not is_forward:
                continue
            taken = self.taken(node)
            if self.name[node] == "Depends":
                checkpoint[node] = max(taken)
            elif any(source in checkpoint for source in taken):
                checkpoint[node] = max(checkpoint.get(source, 0) for source in taken)
            if node in checkpoint:
                ranks[node] = checkpoint[node] * wide + node + 1
        return ranks

    def back_from(self, at: int, most: int) -> Iterator[int]:
        """An operation and those before it that pass gradients on, the nearest ones first."""
        waiting, seen = [at], {at}
        for number, node in enumerate(waiting):
            yield node
            if number == most:
                break
            for source in self.taken(node):
                if len(waiting) > most:
                    break
                if self._passes[source] and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def touches(self, node: int, values: Iterable[int]) -> bool:
        """Whether an operation takes or gives all values."""
        taken = self.taken(node)
        return all(value == node or value in taken for value in values)


def _extents(graph: Graph) -> tuple[NDArray[np.int64], list[bytes]]:
    """How many elements each node's first output has, int64 [nodes], and its shape as bytes."""
    start = graph.shape_start
    sizes = np.ones(graph.arrays, np.int64)
    ranked = np.flatnonzero(np.diff(start) > 0)
    if len(ranked):
        sizes[ranked] = np.multiply.reduceat(graph.extents, start[ranked])
    extents = graph.extents.tobytes()
    wide = graph.extents.itemsize
    first = graph.output_start[:-1]
    ends = zip((start[first] * wide).tolist(), (start[first + 1] * wide).tolist(), strict=True)
    return sizes[first], [extents[low:high] for low, high in ends]
