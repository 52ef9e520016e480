"""How nodes are grouped: by module, equal blocks together, long levels in ranges."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from mlxbench_kernel.graph.model import Graph, Indices, Phase
from mlxbench_kernel.graph.structure import group_hashes, node_hashes

MOST = 400  # children that a group may have
RANGE = 100  # children in each range of a longer level

_NUMBER = re.compile(r"\d+")


@dataclass
class Groups:
    """A tree that is being made; the root is the first.

    Attributes
    ----------
    of_node : int32 [nodes]
        The group that each node stands in directly.
    """

    of_node: Indices
    parent: list[int] = field(default_factory=list)
    title: list[str] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)

    def add(self, parent: int, title: str, kind: str, path: str) -> int:
        """A new group; returns its number."""
        self.parent.append(parent)
        self.title.append(title)
        self.kind.append(kind)
        self.path.append(path)
        return len(self.parent) - 1


def from_root(parent: Indices) -> tuple[Indices, Indices]:
    """Groups with parents before children, and the depth of each.

    Parameters
    ----------
    parent : int32 [groups]
        In any order; -1 for the root.

    Returns
    -------
    order, depth : int32 [groups]
    """
    depth = np.zeros(len(parent), np.int32)
    above = parent.copy()
    while (above >= 0).any():
        depth += above >= 0
        above = np.where(above >= 0, parent[above], -1).astype(np.int32)
    return np.argsort(depth, kind="stable").astype(np.int32), depth


def by_module(graph: Graph) -> Groups:
    """Groups for the modules of a graph, and for its optimizer where it has other phases too."""
    groups = Groups(np.zeros(graph.nodes, np.int32))
    groups.add(-1, graph.title or "graph", graph.scopes[0].kind, "")
    optimizing = graph.phase == Phase.OPTIMIZER
    apart = bool(optimizing.any() and not optimizing.all())
    kinds = {scope.path: scope.kind for scope in graph.scopes}
    # Scopes with nodes of their own: only these, and those around them, become groups.
    places = graph.scope.astype(np.int64) * 2 + (optimizing if apart else 0)
    used, inverse = np.unique(places, return_inverse=True)
    own = {(bool(place % 2), graph.scopes[place // 2].path) for place in used.tolist()}
    known: dict[tuple[bool, str], int] = {(False, ""): 0}
    if apart:
        known[True, ""] = groups.add(0, "optimizer", "optimizer", "")
    of_place = np.zeros(len(used), np.int32)
    for index, place in enumerate(used.tolist()):
        side, scope = bool(place % 2), graph.scopes[place // 2]
        around, above = known[side, ""], ""
        for path in (*scope.parents, scope.path):
            # "layers" of "layers.3" is a list, no module: it gets no group of its own.
            if not path or ((side, path) not in own and not kinds.get(path)):
                continue
            if (side, path) not in known:
                title = path[len(above) + 1 :] if above else path
                known[side, path] = groups.add(around, title, kinds.get(path, ""), path)
            around, above = known[side, path], path
        of_place[index] = around
    groups.of_node = of_place[inverse.reshape(-1)]
    return groups


def fold_repeated(graph: Graph, groups: Groups) -> None:
    """Put neighbours of the same class and the same contents into one group.

    Neighbours are modules whose names differ in their number only, as ``layers.3`` and
    ``layers.4``, or ``block1`` and ``block2``: a ``q_proj`` is not folded with a ``k_proj``, for
    their names say what they are. Forward operations decide: what the gradients of the first and
    the last block add to stands with them.
    """
    counted = (graph.phase == Phase.FORWARD) & (graph.primitive != 0)
    parent = np.array(groups.parent, np.int32)
    order, depth = from_root(parent)
    count = np.bincount(groups.of_node[counted], minlength=len(parent))
    for group in reversed(order[1:].tolist()):
        count[parent[group]] += count[group]
    hashes = None
    for level in range(1, int(depth.max()) + 1):
        alike: dict[tuple[int, str, str, int], list[int]] = {}
        for group in np.flatnonzero(depth == level).tolist():
            title = groups.title[group]
            stem = _NUMBER.sub("#", title)
            if stem != title:
                key = (int(parent[group]), stem, groups.kind[group], int(count[group]))
                alike.setdefault(key, []).append(group)
        if not any(len(members) > 1 for members in alike.values()):
            continue
        if hashes is None:
            hashes = node_hashes(graph, arguments=False)
        # The group at this level that each node is in.
        at_level = np.arange(len(parent), dtype=np.int32)
        for group in order.tolist():
            if depth[group] > level:
                at_level[group] = at_level[parent[group]]
        at_level[depth < level] = -1
        inside = np.where(counted, at_level[groups.of_node], -1).astype(np.int32)
        contents = group_hashes(hashes, graph.sources, graph.targets, inside, len(parent))
        for (above, stem, kind, _), members in alike.items():
            members.sort(key=lambda group: _numbers(groups.title[group]))
            for _, same in groupby(members, key=lambda group: int(contents[group])):
                run = list(same)
                if len(run) > 1:
                    title = f"{len(run)} × {kind or stem.removesuffix('#').rstrip('._')}"
                    fold = groups.add(above, title, "fold", groups.path[run[0]])
                    for group in run:
                        groups.parent[group] = fold


def _numbers(title: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBER.findall(title))


def cut_long_levels(groups: Groups) -> None:
    """Put the loose nodes of groups with more than `MOST` children into ranges.

    They stay in topological order. Modules and folds are never cut apart: they are what a level is
    read by.
    """
    made = len(groups.parent)
    loose = np.bincount(groups.of_node, minlength=made)
    inner = np.bincount(np.array(groups.parent[1:], np.int64), minlength=made)
    for group in np.flatnonzero(loose + inner > MOST).tolist():
        most = max(MOST - int(inner[group]), RANGE)
        if loose[group] > most:
            _cut(groups, group, np.flatnonzero(groups.of_node == group), most)


def _cut(groups: Groups, group: int, nodes: np.ndarray[Any, np.dtype[np.int64]], most: int) -> None:
    """Ranges of a group's nodes, and ranges of these, until no more than `most` are left."""
    starts, ends, children = nodes, nodes, nodes
    while len(children) > most:
        cuts = np.arange(0, len(children), RANGE)
        starts, ends = np.minimum.reduceat(starts, cuts), np.maximum.reduceat(ends, cuts)
        low = len(groups.parent)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            groups.add(group, f"nodes {start}–{end}", "range", groups.path[group])
        around = np.repeat(np.arange(low, low + len(cuts), dtype=np.int32), RANGE)[: len(children)]
        if children is nodes:
            groups.of_node[nodes] = around
        else:
            for child, above in zip(children.tolist(), around.tolist(), strict=True):
                groups.parent[child] = above
        children = np.arange(low, low + len(cuts))
