"""The ordered list of what a cell has put out, found by place and by content."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

# Places are integers far apart, so that a node can go between any two others many times.
GAP = 1 << 120
# Where nodes are put one after the other behind the same node, each takes this part of the gap.
_PART = 64
# How many equal nodes are looked at for one that a rank has not passed.
_CANDIDATES = 16

place_of = attrgetter("place")


@dataclass(slots=True, eq=False)
class Node:
    """One line of a stream, or one mime bundle, with the ranks that put it out.

    Attributes
    ----------
    place
        Where it stands: nodes are shown in ascending order.
    mask
        Bit r is set if rank r put it out; 0 once the node has been removed.
    kind
        ``"stdout"``, ``"stderr"``, ``"display"`` or ``"result"``.
    text
        What stands in a text block; None for a bundle that is shown on its own.
    key
        Content to compare; None while the line is unfinished.
    weight
        What it costs to keep and show, about 1 for an ordinary line.
    touched
        When it last came or gained a rank, as of ``time.monotonic``.
    data, metadata
        Of a bundle.
    since
        Of an unfinished line: the place its rank had come to when it began.
    family
        Of a display with an id: common to those that were one node before an update.
    shown
        Ranks with which a presenter that cannot go back has shown it.
    revised
        An update changed it after it was shown.
    rendered
        Its lines with label, as last rendered; None when they have to be made again.
    """

    place: int
    mask: int
    kind: str
    text: str | None
    key: str | None
    weight: int
    touched: float
    data: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    since: int = 0
    family: object = None
    shown: int = 0
    revised: bool = False
    rendered: str | None = None

    @property
    def is_line(self) -> bool:
        """Whether it is a line of a stream."""
        return self.data is None


class NodeList:
    """Nodes in order of place.

    Attributes
    ----------
    items : list of Node
        The nodes.
    weight : int
        Sum of their weights.
    """

    def __init__(self) -> None:
        self.items: list[Node] = []
        self.weight = 0
        self._index: dict[str, list[Node]] = {}

    def next_place(self) -> int:
        """The place behind all nodes."""
        return self.items[-1].place + GAP if self.items else GAP

    def place_after(self, place: int) -> int:
        """A free place right behind another; behind all nodes if there is no room."""
        at = bisect_right(self.items, place, key=place_of)
        if at == len(self.items):
            return max(self.next_place(), place + GAP)
        room = self.items[at].place - place
        return place + max(1, room // _PART) if room > 1 else self.next_place()

    def add(self, node: Node) -> None:
        """Put a node at its place."""
        items = self.items
        if not items or items[-1].place < node.place:
            items.append(node)
        else:
            insort(items, node, key=place_of)
        self.weight += node.weight
        if node.key is not None:
            self._list(node)

    def rekey(self, node: Node, key: str | None) -> None:
        """Change what a node is found by; None: not at all."""
        self._unlist(node)
        node.key = key
        if key is not None:
            self._list(node)

    def reweigh(self, node: Node, weight: int) -> None:
        """Change a node's weight."""
        self.weight += weight - node.weight
        node.weight = weight

    def remove(self, node: Node) -> None:
        """Take a node out."""
        del self.items[bisect_left(self.items, node.place, key=place_of)]
        self._forget(node)

    def remove_all(self, condition: Callable[[Node], bool]) -> None:
        """Take out all nodes that meet a condition."""
        kept = []
        for node in self.items:
            if condition(node):
                self._forget(node)
            else:
                kept.append(node)
        self.items = kept

    def find(self, key: str, after: int, bit: int) -> Node | None:
        """The first node of this content behind a place that a rank is not in."""
        nodes = self._index.get(key)
        if nodes is None or nodes[-1].place <= after:
            return None
        at = bisect_right(nodes, after, key=place_of) if len(nodes) > 1 else 0
        for node in nodes[at : at + _CANDIDATES]:
            if not node.mask & bit:
                return node
        return None

    def move_before(self, nodes: list[Node], target: Node) -> bool:
        """Put nodes, in their order, right before another; False if there is no room."""
        at = bisect_left(self.items, target.place, key=place_of)
        low = self.items[at - 1].place if at else 0
        step = (target.place - low) // (len(nodes) + 1)
        if step == 0:
            return False
        moved = set(map(id, nodes))
        self.items = [node for node in self.items if id(node) not in moved]
        for node in nodes:
            self._unlist(node)
        for number, node in enumerate(nodes, 1):
            node.place = low + number * step
            self._list(node)
        at = bisect_left(self.items, target.place, key=place_of)
        self.items[at:at] = nodes
        return True

    def following(self, place: int) -> Iterable[Node]:
        """Nodes behind a place, in order."""
        return self.items[bisect_right(self.items, place, key=place_of) :]

    def _list(self, node: Node) -> None:
        assert node.key is not None
        nodes = self._index.setdefault(node.key, [])
        if not nodes or nodes[-1].place < node.place:
            nodes.append(node)
        else:
            insort(nodes, node, key=place_of)

    def _unlist(self, node: Node) -> None:
        if node.key is None:
            return
        nodes = self._index[node.key]
        if len(nodes) == 1:
            del self._index[node.key]
        else:
            nodes.remove(node)

    def _forget(self, node: Node) -> None:
        self._unlist(node)
        self.weight -= node.weight
        node.mask = 0


def in_rank_order(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes, with those next to each other that have no rank in common sorted by rank.

    They came in the order in which the ranks happened to be scheduled, which says nothing;
    what each rank said stays in its order.
    """
    group: list[Node] = []
    taken = 0
    for node in nodes:
        if node.mask & taken:
            yield from sorted(group, key=_lowest_rank)
            group, taken = [], 0
        group.append(node)
        taken |= node.mask
    yield from sorted(group, key=_lowest_rank)


def _lowest_rank(node: Node) -> int:
    return node.mask & -node.mask
