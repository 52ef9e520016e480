"""Which node of one graph is which of another: by names of inputs and structure, not MLX's ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.input_names import Names
from mlxbench_kernel.graph.model import Graph, Indices
from mlxbench_kernel.graph.structure import (
    Hashes,
    joined,
    node_hashes,
    positions,
    primitive_hashes,
    text_hashes,
)

_MASK = (1 << 62) - 1
_PLACE = 0x9E3779B97F4A7C1  # tells the outputs of a node apart


class Fingerprints:
    """Hashes of a graph's nodes, each made when it is asked for.

    ``up`` covers everything that a node is computed from, ``down`` everything that is computed
    from it (Weisfeiler and Lehman's colouring, complete in one pass as the graph has no circles).
    ``bare`` ones leave out shapes, dtypes and arguments, ``plain`` ones what inputs are called.

    Parameters
    ----------
    graph
        Any graph.
    known
        Whether shapes and dtypes are to count.
    names : dict of int to str
        What its inputs are called, by node.
    """

    def __init__(self, graph: Graph, known: bool, names: Names) -> None:
        self.graph = graph
        self.known = known
        self.names = names

    @cached_property
    def called(self) -> Hashes:
        """Of the names of inputs; 0 where there is none. uint64 [nodes]"""
        result = np.zeros(self.graph.nodes, np.uint64)
        result[list(self.names)] = text_hashes(self.names.values())
        return result

    @cached_property
    def labelled(self) -> Hashes:
        """Of the names of results; 0 where there is none. uint64 [nodes]"""
        result = np.zeros(self.graph.nodes, np.uint64)
        result[self.graph.node[list(self.graph.names)]] = text_hashes(self.graph.names.values())
        result[self.graph.primitive == 0] = 0
        return result

    @cached_property
    def own(self) -> Hashes:
        """Of the node alone."""
        return node_hashes(self.graph) if self.known else self.bare

    @cached_property
    def bare(self) -> Hashes:
        """Of the primitive."""
        return primitive_hashes(self.graph)

    @cached_property
    def place(self) -> Hashes:
        """Of module and phase."""
        scopes = text_hashes(scope.path for scope in self.graph.scopes)
        return joined(scopes[self.graph.scope], self.graph.phase.astype(np.uint64))

    @cached_property
    def up(self) -> Hashes:
        if not self.names:
            return self.plain_up
        return upward(self.graph, self.own ^ self.called)

    @cached_property
    def plain_up(self) -> Hashes:
        return upward(self.graph, self.own)

    @cached_property
    def down(self) -> Hashes:
        return downward(self.graph, self.own)

    @cached_property
    def bare_up(self) -> Hashes:
        return upward(self.graph, self.bare ^ self.called)

    @cached_property
    def bare_down(self) -> Hashes:
        return downward(self.graph, self.bare)


def upward(graph: Graph, own: Hashes) -> Hashes:
    """Hashes of nodes with all that they are computed from. uint64 [nodes]"""
    result: list[int] = own.view(np.int64).tolist()
    sources, places = graph.sources.tolist(), _output_places(graph)
    start = graph.input_start.tolist()
    low = 0
    for node, high in enumerate(start[1:]):
        if high != low:
            taken = [result[sources[edge]] ^ places[edge] for edge in range(low, high)]
            result[node] = hash((result[node], *taken))
        low = high
    return np.array(result, np.int64).view(np.uint64)


def downward(graph: Graph, own: Hashes) -> Hashes:
    """Hashes of nodes with all that is computed from them. uint64 [nodes]"""
    result: list[int] = own.view(np.int64).tolist()
    users = [0] * graph.nodes
    for number, array in enumerate(graph.outputs.tolist()):
        node = int(graph.node[array])
        users[node] += hash((number, array - int(graph.output_start[node])))
    sources, places = graph.sources.tolist(), _output_places(graph)
    start = graph.input_start.tolist()
    for node in range(graph.nodes - 1, -1, -1):
        mine = result[node] = hash((result[node], users[node] & _MASK))
        low = start[node]
        for edge in range(low, start[node + 1]):
            users[sources[edge]] += hash((mine, edge - low, places[edge]))
    return np.array(result, np.int64).view(np.uint64)


def _output_places(graph: Graph) -> list[int]:
    """For each edge, a number for which output of the source it begins at; 0 for the first."""
    place = positions(graph.output_start)[graph.inputs].astype(np.int64)
    places: list[int] = (place * _PLACE).tolist()
    return places


class Matching:
    """Pairs of nodes, found from the surest to the least sure.

    Attributes
    ----------
    of_a, of_b : int32 [nodes]
        The partner of each node in the other graph; -1 for none.
    """

    def __init__(self, a: Fingerprints, b: Fingerprints) -> None:
        self.a, self.b = a, b
        self.of_a: Indices = np.full(a.graph.nodes, -1, np.int32)
        self.of_b: Indices = np.full(b.graph.nodes, -1, np.int32)
        self._find()

    def _find(self) -> None:
        self._pair(lambda side: joined(joined(side.up, side.down), side.place))
        self._pair(lambda side: joined(side.up, side.down))
        self._pair(lambda side: side.called, among=_named)
        self._pair(lambda side: joined(side.own, side.labelled), among=_labelled)
        # Constants look all alike: the nodes that take them tell which is which. After names have
        # had their say, the same structure with other inputs is the same node, changed.
        passes: tuple[tuple[Callable[[Fingerprints], Hashes], bool], ...] = (
            (lambda side: side.up, False),
            (lambda side: joined(joined(side.plain_up, side.down), side.place), True),
            (lambda side: joined(side.plain_up, side.down), True),
            (lambda side: side.plain_up, False),
            (lambda side: side.down, True),
            (lambda side: joined(joined(side.bare_up, side.bare_down), side.place), True),
            (lambda side: side.bare_up, False),
            (lambda side: side.bare_down, True),
            (lambda side: joined(side.own, side.place), False),
            (lambda side: joined(side.bare, side.place), False),
        )
        for key, leaves in passes:
            if not self._left():
                return
            self._pair(key, among=None if leaves else _computed)
            self._spread()
        # Whatever is left in the same module, in its order.
        self._pair(lambda side: joined(side.own, side.place), strict=False)
        self._pair(lambda side: joined(side.bare, side.place), strict=False)

    def _left(self) -> bool:
        return bool((self.of_a < 0).any() and (self.of_b < 0).any())

    def _pair(
        self,
        key: Callable[[Fingerprints], Hashes],
        strict: bool = True,
        among: Callable[[Fingerprints], NDArray[np.bool_]] | None = None,
    ) -> None:
        """Pair nodes with equal keys in their order; if `strict`, only where both have as many."""
        if not self._left():
            return
        sides = []
        for side, partner in ((self.a, self.of_a), (self.b, self.of_b)):
            free = partner < 0
            if among is not None:
                free &= among(side)
            nodes = np.flatnonzero(free)
            keys = key(side)[nodes]
            order = np.argsort(keys, kind="stable")
            keys, nodes = keys[order], nodes[order]
            first = np.searchsorted(keys, keys)
            times = np.searchsorted(keys, keys, side="right") - first
            turn = (np.arange(len(keys)) - first).astype(np.uint64)
            extra = joined(turn, times.astype(np.uint64)) if strict else turn
            sides.append((joined(keys, extra), nodes))
        (keys_a, nodes_a), (keys_b, nodes_b) = sides
        _, in_a, in_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
        self.of_a[nodes_a[in_a]] = nodes_b[in_b]
        self.of_b[nodes_b[in_b]] = nodes_a[in_a]

    def _spread(self) -> None:
        """Pair what stands at the same place beside nodes that are paired already."""
        a, b = self.a.graph, self.b.graph
        of_a, of_b = self.of_a.tolist(), self.of_b.tolist()
        done = self.of_a >= 0
        border = np.concatenate(
            [
                a.targets[done[a.targets] & ~done[a.sources]],
                a.sources[done[a.sources] & ~done[a.targets]],
            ]
        )
        todo = deque(np.unique(border).tolist())
        bare_a, bare_b = self.a.bare.tolist(), self.b.bare.tolist()
        near_a, near_b = _Neighbours(a), _Neighbours(b)

        def take(one: int, other: int) -> None:
            if of_a[one] < 0 and of_b[other] < 0 and bare_a[one] == bare_b[other]:
                of_a[one], of_b[other] = other, one
                todo.append(one)

        # What a node takes stands at its place in the call; what takes it does not, so that is
        # looked at when nothing else is left.
        later = deque[int]()
        while todo or later:
            if todo:
                one = todo.popleft()
                later.append(one)
                above_a, above_b = near_a.sources_of(one), near_b.sources_of(of_a[one])
                if len(above_a) == len(above_b):
                    for pair in zip(above_a, above_b, strict=True):
                        take(*pair)
                continue
            one = later.popleft()
            below_a, below_b = near_a.users_of(one), near_b.users_of(of_a[one])
            free_a = [node for node in below_a if of_a[node] < 0]
            free_b = [node for node in below_b if of_b[node] < 0]
            if len(below_a) == len(below_b) and len(free_a) == len(free_b):
                for pair in zip(free_a, free_b, strict=True):
                    take(*pair)
        self.of_a, self.of_b = np.array(of_a, np.int32), np.array(of_b, np.int32)


class _Neighbours:
    """The nodes next to a node, as lists: quicker than arrays for one node at a time."""

    def __init__(self, graph: Graph) -> None:
        self._start = graph.input_start.tolist()
        self._sources = graph.sources.tolist()
        order = np.argsort(graph.sources, kind="stable")
        self._users = graph.targets[order].tolist()
        self._user_start = np.searchsorted(
            graph.sources[order], np.arange(graph.nodes + 1)
        ).tolist()

    def sources_of(self, node: int) -> list[int]:
        sources: list[int] = self._sources[self._start[node] : self._start[node + 1]]
        return sources

    def users_of(self, node: int) -> list[int]:
        users: list[int] = self._users[self._user_start[node] : self._user_start[node + 1]]
        return users


def _computed(side: Fingerprints) -> NDArray[np.bool_]:
    """All but inputs. bool [nodes]"""
    return np.asarray(side.graph.primitive != 0)


def _labelled(side: Fingerprints) -> NDArray[np.bool_]:
    """Computed nodes that the user has a name for. bool [nodes]"""
    return np.asarray(side.labelled != 0)


def _named(side: Fingerprints) -> NDArray[np.bool_]:
    """Inputs that the user has a name for. bool [nodes]"""
    return np.asarray(side.called != 0)


def partners(matching: Matching) -> NDArray[np.int32]:
    """The pairs, in the order of the second graph. int32 [pairs, 2]"""
    second = np.flatnonzero(matching.of_b >= 0)
    return np.stack([matching.of_b[second], second], axis=1).astype(np.int32)
