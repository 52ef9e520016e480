"""The groups that a graph's nodes stand in: modules, repeated blocks, and ranges where it is long.

A view opens a few of them at a time, so a graph of a million nodes starts as a screenful of boxes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph import grouping
from mlxbench_kernel.graph.model import Graph, Indices, Sizes

ROOT = 0
_CLOSED_AT_FIRST = ("fold", "range", "optimizer")


@dataclass(frozen=True)
class Visible:
    """What is seen while some groups are open.

    Attributes
    ----------
    items : int32 [items]
        Node numbers, and -1 - group for closed groups.
    frame : int32 [items]
        The open group that each item stands in.
    frames : int32 [frames]
        The open groups that are seen, from the outermost inwards; the first is the root.
    item_of : int32 [nodes]
        The item that each node is seen in: itself, a closed group, or the user of a constant.
    """

    items: Indices
    frame: Indices
    frames: Indices
    item_of: Indices


class Hierarchy:
    """A tree of groups over the nodes of a graph.

    The levels are: the root; ``optimizer``, where a graph has other phases too; the modules, where
    backward nodes stand with the forward ones of their module; the nodes. Neighbours in a list of
    modules with equal contents are folded into one group, as ``32 × TransformerBlock``. The
    loose nodes of what has more than `grouping.MOST` children are cut into ranges.

    Parameters
    ----------
    graph
        With `Graph.scope` and `Graph.phase` filled in where they are known.

    Attributes
    ----------
    parent : int32 [groups]
        -1 for the root, which is group 0. A parent has a lower number than its children.
    group : int32 [nodes]
        The innermost group of each node.
    title : tuple of str
        As ``attention``, ``layers.3``, ``4 × TransformerBlock``, ``nodes 0–99``.
    kind : tuple of str
        The module's class, ``optimizer``, ``fold`` or ``range``; "" where it is not known.
    path : tuple of str
        The module's path, also for a range within it; that of the first block for a fold.
    count : int64 [groups]
        How many nodes are in it, at any depth.
    depth : int32 [groups]
        0 for the root.
    """

    def __init__(self, graph: Graph) -> None:
        groups = grouping.by_module(graph)
        grouping.fold_repeated(graph, groups)
        grouping.cut_long_levels(groups)
        order, depth = grouping.from_root(np.array(groups.parent, np.int32))
        number = np.empty(len(order), np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        parent = np.array(groups.parent, np.int32)[order]
        self.graph = graph
        self.parent: Indices = np.where(parent >= 0, number[parent], -1).astype(np.int32)
        self.depth: Indices = depth[order]
        self.group: Indices = number[groups.of_node]
        self.title = tuple(groups.title[each] for each in order.tolist())
        self.kind = tuple(groups.kind[each] for each in order.tolist())
        self.path = tuple(groups.path[each] for each in order.tolist())
        self.count: Sizes = self.total(np.ones(graph.nodes)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def levels(self) -> list[NDArray[np.int64]]:
        """The groups of each depth, from the root down."""
        ends = np.searchsorted(self.depth, np.arange(int(self.depth[-1]) + 2))
        return [np.arange(low, high) for low, high in pairwise(ends.tolist())]

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of a value per node over each group. float64 [nodes] -> float64 [groups]"""
        result = np.bincount(self.group, values, len(self)).astype(np.float64)
        for level in reversed(self.levels[1:]):
            np.add.at(result, self.parent[level], result[level])
        return result

    def children(self, group: int) -> tuple[int, ...]:
        """The groups directly in a group."""
        return tuple(np.flatnonzero(self.parent == group).tolist())

    def nodes_in(self, group: int) -> Indices:
        """The nodes in a group, at any depth."""
        inside = np.zeros(len(self), np.bool_)
        inside[group] = True
        for level in self.levels[1:]:
            inside[level] |= inside[self.parent[level]]
        return np.flatnonzero(inside[self.group]).astype(np.int32)

    def around(self, node: int) -> tuple[int, ...]:
        """The groups around a node, outermost first: what to open so that it is seen."""
        found = [int(self.group[node])]
        while found[-1] != ROOT:
            found.append(int(self.parent[found[-1]]))
        return tuple(reversed(found))

    def start(self, most: int = 60) -> set[int]:
        """The groups to open at first: the outer ones, as long as no more than `most` are seen.

        Folded blocks and the optimizer stay closed.
        """
        inside = np.bincount(self.group, minlength=len(self))
        inside += np.bincount(self.parent[1:], minlength=len(self))
        opened, seen = {ROOT}, int(inside[ROOT])
        for level in self.levels[1:]:
            for group in level[np.argsort(inside[level], kind="stable")].tolist():
                if self.parent[group] not in opened or self.kind[group] in _CLOSED_AT_FIRST:
                    continue
                if seen + inside[group] - 1 <= most:
                    opened.add(group)
                    seen += int(inside[group]) - 1
        return opened

    def visible(self, opened: Collection[int]) -> Visible:
        """What is seen while these groups are open; the root always is.

        Constants and parameters that only one node takes are seen in that node.

        Parameters
        ----------
        opened
            Group numbers; those within closed groups do not count.
        """
        wanted = np.zeros(len(self), np.bool_)
        numbers = np.fromiter(opened, np.int64, len(opened))
        wanted[numbers[(numbers >= 0) & (numbers < len(self))]] = True
        wanted[ROOT] = True
        # The closed group that hides each group; -1 for a group that is open itself.
        hidden = np.full(len(self), -1, np.int32)
        for level in self.levels[1:]:
            above = hidden[self.parent[level]]
            hidden[level] = np.where(above >= 0, above, np.where(wanted[level], -1, level))
        rest = hidden[self.group]
        item_of = np.where(rest >= 0, -1 - rest, np.arange(self.graph.nodes, dtype=np.int32))
        user = self._only_user
        # What a node alone takes is seen in it, unless it stands in a closed group of its own.
        inside = (user >= 0) & (item_of >= 0)
        inside &= item_of[user] >= 0
        item_of[inside] = user[inside]
        nodes = np.flatnonzero((rest < 0) & ~inside).astype(np.int32)
        numbered = np.arange(len(self), dtype=np.int32)
        closed = np.flatnonzero(hidden == numbered).astype(np.int32)
        return Visible(
            items=np.concatenate([-1 - closed, nodes]),
            frame=np.concatenate([self.parent[closed], self.group[nodes]]),
            frames=np.flatnonzero(hidden < 0).astype(np.int32),
            item_of=item_of.astype(np.int32),
        )

    @cached_property
    def _only_user(self) -> Indices:
        """The one node that takes a constant or a parameter; -1 for all others. int32 [nodes]"""
        graph = self.graph
        user = np.full(graph.nodes, -1, np.int32)
        user[graph.sources] = graph.targets
        once = np.bincount(graph.sources, minlength=graph.nodes) == 1
        once &= graph.primitive == 0
        once[graph.node[graph.outputs]] = False
        named = [array for array, name in graph.names.items() if not is_parameter(name)]
        once[graph.node[named]] = False
        return np.where(once, user, -1).astype(np.int32)


def is_parameter(name: str) -> bool:
    """Whether a name is the path of a parameter or of optimizer state, not of a variable."""
    return "." in name or name in ("weight", "bias", "scales", "biases")
