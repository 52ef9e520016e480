"""Which variable, module or kept state holds each buffer of MLX.

Looking evaluates nothing, changes nothing and keeps nothing alive. Objects are gone through in
Python (`walk`), the buffers and graphs behind arrays in the native module (``buffers.h``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from operator import itemgetter
from typing import Any

from mlxbench_kernel import native
from mlxbench_kernel.memory import contents
from mlxbench_kernel.memory.holdings import NONE, UNKNOWN, Holdings
from mlxbench_kernel.memory.walk import GRAPH, KINDS, Walk

SECONDS = 1.0
OBJECTS = 400_000
# No names of variables.
_REST = {"unattributed": "held by nothing found", "cache": "MLX's cache"}
_ORDER = {kind: place for place, kind in enumerate(KINDS)}


def attribute(
    namespace: Mapping[str, Any],
    hidden: Collection[str] = (),
    *,
    graphs: bool = True,
    seconds: float = SECONDS,
    objects: int = OBJECTS,
) -> Holdings:
    """Find what holds the memory of this process.

    Parameters
    ----------
    namespace
        Variables by name.
    hidden
        Names that the user did not give; they count for IPython, as ``Out`` and ``_`` do.
    graphs
        Whether to look behind arrays that are not evaluated. Only where no other thread
        evaluates meanwhile, as that takes graphs apart: between cells, in the thread that runs
        them. Without it, `freeable` knows only of what Python's objects hold.
    seconds, objects
        After that much time, or that many objects, the rest is left out, and the result says so.

    Returns
    -------
    Holdings
        Without the native module no buffers: all that is active is unattributed then.
    """
    import mlx.core as mx

    began = time.perf_counter()
    walk = Walk(seconds, objects)
    walk.variables(namespace, hidden)
    roots = walk.roots()
    second = walk.shared(roots)
    # What variables share as whole containers has their arrays under both.
    again = [at for at, place in enumerate(walk.places) if second[place] != NONE]
    order = sorted(range(len(walk.places)), key=lambda at: _ORDER[walk.rows[walk.places[at]][2]])
    nodes = [walk.places[at] for at in order]
    holders = [roots[node] for node in nodes] + [second[walk.places[at]] for at in again]
    counted = [2] * len(order) + [1] * len(again)  # the reference that was found, and ours
    arrays = [walk.arrays[at] for at in (*order, *again)]
    walk.arrays.clear()
    found = _Found(walk, nodes)
    module = native.load()
    if module is not None:
        found.read(**module.read_holdings(arrays, holders, counted, graphs))
    return found.holdings(
        active=mx.get_active_memory(),
        cache=mx.get_cache_memory(),
        graphs=graphs,
        seconds=time.perf_counter() - began,
    )


class _Found:
    """Bytes on the nodes of a walk.

    Parameters
    ----------
    walk
        That has ended.
    nodes
        Of the arrays, in the order in which they were read.
    """

    def __init__(self, walk: Walk, nodes: list[int]) -> None:
        self.walk, self.at = walk, nodes
        count = len(walk.rows)
        self.own, self.shared, self.host, self.nodes = ([0] * count for _ in range(4))
        self.parents = [parent for _, parent, _, _ in walk.rows]
        self.kinds = [kind for _, _, kind, _ in walk.rows]
        self.types = [name for _, _, _, name in walk.rows]
        self.shapes: list[list[int] | None] = [None] * count
        self.held: list[tuple[int, int]] = []
        self.sizes: list[int] = []
        self.first: list[int] = []
        self.second: list[int] = []
        self._shares: set[tuple[int, int]] = set()  # (node, buffer): counted once each
        for node, size in walk.host:
            self.host[node] += size

    def read(
        self,
        lazy: list[bool],
        dtype: list[str],
        shape: list[list[int]],
        buffer: list[int],
        nodes: list[int],
        behind: list[tuple[int, int]],
        bytes: list[int],
        is_mlx: list[bool],
        first: list[int],
        second: list[int],
    ) -> None:
        """Give each buffer to the first in the order of kinds; see ``read_holdings``."""
        claims = []  # place in the order, node, buffer
        for at, node in enumerate(self.at):
            self.types[node], self.shapes[node], self.nodes[node] = dtype[at], shape[at], nodes[at]
            number = buffer[at]
            if number >= 0 and is_mlx[number]:
                claims.append((_ORDER[self.kinds[node]], node, number))
            elif number >= 0:
                self.host[node] += bytes[number]
        for at, number in behind:
            if at < len(self.at) and is_mlx[number]:
                node = self.at[at]
                claims.append((max(_ORDER[GRAPH], _ORDER[self.kinds[node]]), node, number))
        for at, is_lazy in enumerate(lazy[: len(self.at)]):
            if is_lazy:
                self.kinds[self.at[at]] = GRAPH
        owners = [NONE] * len(bytes)
        claims.sort(key=itemgetter(0))
        for _, node, number in claims:
            owner = owners[number]
            if owner == NONE:
                owners[number] = node
                self.own[node] += bytes[number]
            elif owner != node:
                self._share(node, owner, number, bytes[number])
            self.held.append((node, number))
        self.sizes = [size if own else 0 for size, own in zip(bytes, is_mlx, strict=True)]
        self.first, self.second = first, second

    def _share(self, node: int, owner: int, number: int, size: int) -> None:
        """Note what a node shares, and those above it as far as `owner` is not below them too."""
        above = set(self._line(owner))
        for each in self._line(node):
            if each in above or (each, number) in self._shares:
                break
            self._shares.add((each, number))
            self.shared[each] += size

    def _share_links(self, bytes_: list[int]) -> None:
        seen = set()
        for again, first in self.walk.links:
            above = set(self._line(first))
            line = self._line(again)
            size = bytes_[first] + self.shared[first]
            for each in (
                line if first not in line else ()
            ):  # one that leads to itself shares nothing
                if each in above or (each, first) in seen:
                    break
                seen.add((each, first))
                self.shared[each] += size

    def _line(self, node: int) -> list[int]:
        """A node and those above it, the variable last."""
        line = []
        while node >= 0:
            line.append(node)
            node = self.parents[node]
        return line

    def holdings(self, **rest: Any) -> Holdings:
        """Only those nodes that lead to something, with all that is below them added up."""
        walk, parents = self.walk, self.parents
        bytes_ = list(self.own)
        used = [False] * len(parents)
        for node in (*walk.places, *(node for node, _ in walk.host)):
            used[node] = True
        for again, first in walk.links:
            used[again] = used[first] = True
        for node in range(len(parents) - 1, -1, -1):
            if used[node] and (parent := parents[node]) >= 0:
                used[parent] = True
                bytes_[parent] += bytes_[node]
                self.host[parent] += self.host[node]
                self.nodes[parent] += self.nodes[node]
        self._share_links(bytes_)
        kept = [node for node, is_used in enumerate(used) if is_used]
        new = {node: place for place, node in enumerate(kept)} | {NONE: NONE, UNKNOWN: UNKNOWN}
        found = Holdings(
            labels=self._labels(kept),
            parents=[new[parents[node]] for node in kept],
            kinds=[self.kinds[node] for node in kept],
            own=[self.own[node] for node in kept],
            bytes=[bytes_[node] for node in kept],
            shared=[self.shared[node] for node in kept],
            host=[self.host[node] for node in kept],
            nodes=[self.nodes[node] for node in kept],
            types=[self.types[node] for node in kept],
            shapes=[self.shapes[node] for node in kept],
            same=[[new[again], new[first]] for again, first in walk.links],
            held_by=[new[node] for node, _ in self.held],
            held=[number for _, number in self.held],
            buffer_bytes=self.sizes,
            first=[new[node] for node in self.first],
            second=[new[node] for node in self.second],
            stopped=walk.stopped,
            **rest,
        )
        for kind, size in (("unattributed", found.unattributed), ("cache", found.cache)):
            _add_top(found, kind, size)
        return found

    def _labels(self, kept: list[int]) -> list[str]:
        """Different ones below one node, also where keys have no text of their own."""
        rows, counts = self.walk.rows, Counter[tuple[int, str]]()
        labels = []
        for node in kept:
            label = contents.label(rows[node][0])
            counts[rows[node][1], label] += 1
            count = counts[rows[node][1], label]
            labels.append(label if count == 1 else f"{label} ({count})")
        return labels


def _add_top(found: Holdings, kind: str, size: int) -> None:
    row: dict[str, Any] = {
        "labels": _REST[kind], "parents": NONE, "kinds": kind, "own": size, "bytes": size,
        "shared": 0, "host": 0, "nodes": 0, "types": "", "shapes": None,
    }  # fmt: skip
    for name, value in row.items():
        getattr(found, name).append(value)
