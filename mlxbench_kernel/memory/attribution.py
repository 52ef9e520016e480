"""Which variable, module or kept state holds each buffer of MLX.

Looking evaluates nothing, changes nothing and keeps nothing alive. Objects are gone through in
Python (`walk`), the buffers and graphs behind arrays in the native module (``buffers.h``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from mlxbench_kernel import native
from mlxbench_kernel.memory import contents
from mlxbench_kernel.memory.holdings import NONE, UNKNOWN, Holdings
from mlxbench_kernel.memory.walk import GRAPH, KINDS, Walk

SECONDS = 1.0
OBJECTS = 400_000
UNATTRIBUTED, CACHE = "unattributed", "cache"
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
    second = walk.shared()
    # What variables share as whole containers has their arrays under both.
    again = [at for at, place in enumerate(walk.places) if second[place] != NONE]
    order = sorted(range(len(walk.places)), key=lambda at: _ORDER[walk.kinds[walk.places[at]]])
    places = [*order, *again]
    nodes = [walk.places[at] for at in places]
    roots = [walk.roots[node] for node in nodes[: len(order)]]
    roots += [second[node] for node in nodes[len(order) :]]
    counted = [2] * len(order) + [1] * len(again)  # the reference that was found, and ours
    arrays = [walk.arrays[at] for at in places]
    described = [_described(array) for array in walk.arrays]
    walk.arrays.clear()
    module = native.load()
    read = None if module is None else module.read_holdings(arrays, roots, counted, graphs)
    arrays.clear()
    found = _Found(walk, nodes[: len(order)])
    if read is not None:
        found.read({name: column.tolist() for name, column in read.items()})
    return found.holdings(
        dict(zip(walk.places, described, strict=True)),
        active=mx.get_active_memory(),
        cache=mx.get_cache_memory(),
        seconds=time.perf_counter() - began,
    )


def _described(array: Any) -> tuple[str, list[int]]:
    return str(array.dtype).removeprefix("mlx.core."), list(array.shape)


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
        count = len(walk.parents)
        self.own, self.shared, self.host, self.nodes = ([0] * count for _ in range(4))
        self.kinds = list(walk.kinds)
        self.held: list[tuple[int, int]] = []
        self.buffers: list[tuple[int, int, int]] = []  # bytes, first, second
        self._shares: set[tuple[int, int]] = set()  # (node, buffer): counted once each
        for node, size in walk.host:
            self.host[node] += size

    def read(self, found: dict[str, list[int]]) -> None:
        """Give each buffer to the first in the order of kinds."""
        claims = self._claims(found)
        roots = zip(found["first"], found["second"], strict=True)
        holders = dict(zip(found["of"], roots, strict=True))
        numbers: dict[int, int] = {}
        owners: list[int] = []
        for _, node, buffer, size in sorted(claims, key=lambda claim: claim[0]):
            number = numbers.setdefault(buffer, len(numbers))
            if number == len(owners):
                owners.append(node)
                self.buffers.append((size, *holders[buffer]))
                self.own[node] += size
            elif owners[number] != node:
                self._share(node, owners[number], number, size)
            self.held.append((node, number))

    def _claims(self, found: dict[str, list[int]]) -> list[tuple[int, int, int, int]]:
        """Who holds what, as (place in the order, node, buffer, bytes)."""
        claims = []
        columns = (found[name] for name in ("buffer", "bytes", "is_mlx", "lazy", "nodes"))
        for node, buffer, size, is_mlx, lazy, nodes in zip(self.at, *columns, strict=False):
            self.nodes[node] = nodes
            if lazy:
                self.kinds[node] = GRAPH
            elif is_mlx:
                claims.append((_ORDER[self.kinds[node]], node, buffer, size))
            else:
                self.host[node] += size
        columns = (found[name] for name in ("behind_array", "behind_buffer", "behind_bytes"))
        for at, buffer, size in zip(*columns, strict=True):
            if at < len(self.at):
                node = self.at[at]
                place = max(_ORDER[GRAPH], _ORDER[self.walk.kinds[node]])
                claims.append((place, node, buffer, size))
        return claims

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
            node = self.walk.parents[node]
        return line

    def holdings(self, described: dict[int, tuple[str, list[int]]], **rest: Any) -> Holdings:
        """Only those nodes that lead to something, with all that is below them added up."""
        walk = self.walk
        bytes_ = list(self.own)
        used = [node in described for node in range(len(bytes_))]
        for again, first in walk.links:
            used[again] = used[first] = True
        for node in range(len(bytes_) - 1, -1, -1):
            used[node] = used[node] or self.host[node] > 0
            if (parent := walk.parents[node]) >= 0 and used[node]:
                used[parent] = True
                for column in (bytes_, self.host, self.nodes):
                    column[parent] += column[node]
        kept = [node for node, is_used in enumerate(used) if is_used]
        new = {node: place for place, node in enumerate(kept)} | {NONE: NONE, UNKNOWN: UNKNOWN}
        self._share_links(bytes_)
        sizes, first_, second = ([each[place] for each in self.buffers] for place in range(3))
        what = [described.get(node, (walk.types[node], None)) for node in kept]
        found = Holdings(
            labels=[contents.label(walk.keys[node]) for node in kept],
            parents=[new[walk.parents[node]] for node in kept],
            kinds=[self.kinds[node] for node in kept],
            own=[self.own[node] for node in kept],
            bytes=[bytes_[node] for node in kept],
            shared=[self.shared[node] for node in kept],
            host=[self.host[node] for node in kept],
            nodes=[self.nodes[node] for node in kept],
            types=[name for name, _ in what],
            shapes=[shape for _, shape in what],
            same=[[new[again], new[first]] for again, first in walk.links],
            held_by=[new[node] for node, _ in self.held],
            held=[number for _, number in self.held],
            buffer_bytes=sizes,
            first=[new[node] for node in first_],
            second=[new[node] for node in second],
            stopped=walk.stopped,
            **rest,
        )
        for kind, size in ((UNATTRIBUTED, found.unattributed), (CACHE, found.cache)):
            _add_top(found, kind, size)
        return found


def _add_top(found: Holdings, kind: str, size: int) -> None:
    row: dict[str, Any] = {
        "labels": kind, "parents": NONE, "kinds": kind, "own": size, "bytes": size, "shared": 0,
        "host": 0, "nodes": 0, "types": "", "shapes": None,
    }  # fmt: skip
    for name, value in row.items():
        getattr(found, name).append(value)
