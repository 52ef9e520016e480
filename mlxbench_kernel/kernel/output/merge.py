"""Merges what ranks put out: what they say alike stands once, each rank's order is kept.

Every rank has a *base*, the last node that it shares with others, and *own* nodes since
then. A new item joins the first equal node behind the base, if there is one near enough;
the rank's own nodes that stand behind that node move before it, which changes nobody's
order. Otherwise the item becomes a new node at the end. So the result hardly depends on
how the messages of the ranks interleave.
"""

from __future__ import annotations

from collections import defaultdict

from mlxbench_kernel.kernel.output.nodes import GAP, Node, NodeList, place_of

HEAD = 1000  # weight of the nodes at the beginning that are kept
TAIL = 4000  # weight of the lines at the end that are kept; as much again for bundles
SLACK = 2000  # how much more there may be before any is dropped
WINDOW = 1000  # nodes that a rank may skip to join an equal one


class RankPlace:
    """How far one rank has come.

    Attributes
    ----------
    bit : int
        Its bit in masks.
    base : int
        Place of the last node that it shares.
    last : int
        Place of its last finished node.
    left_out : int
        Lines of it that are not kept.
    """

    def __init__(self, rank: int) -> None:
        self.bit = 1 << rank
        self.restart()

    def restart(self, at: int | None = None) -> None:
        """Begin again; new nodes then go behind the place `at`, by default to the end."""
        self.base = 0
        self.last = at or 0
        self.anchored = at is not None
        self.own: list[Node] = []
        self.left_out = 0
        self.lost = False


class Merge:
    """The nodes of a cell and how far each rank has come in them.

    Parameters
    ----------
    ranks
        Ranks of the cell.

    Attributes
    ----------
    nodes : NodeList
        The nodes.
    places : dict
        `RankPlace` by rank.
    boundary : int or None
        Place of the last node of the head, once anything behind it has been left out.
    unseen : int
        Nodes and lines that were left out before a presenter marked them as shown.
    """

    def __init__(self, ranks: list[int]) -> None:
        self.nodes = NodeList()
        self.places = {rank: RankPlace(rank) for rank in ranks}
        self.boundary: int | None = None
        self.unseen = 0
        self._by_bit = {place.bit: place for place in self.places.values()}
        self._limit = HEAD + TAIL + SLACK

    def put(self, rank: RankPlace, node: Node) -> Node:
        """Take in one finished item.

        Parameters
        ----------
        rank
            Who put it out.
        node
            The item, not yet in the list, with key; its place is set here.

        Returns
        -------
        Node
            The node that now stands for it.
        """
        assert node.key is not None
        equal = self._join(rank, node.key, node.touched)
        if equal is not None:
            return equal
        if rank.anchored:
            node.place = self.nodes.place_after(rank.last)
        else:
            node.place = self.nodes.next_place()
        rank.last = node.place
        rank.own.append(node)
        self.nodes.add(node)
        return node

    def begin(self, rank: RankPlace, node: Node) -> None:
        """Put an unfinished line at the end."""
        after = rank.last
        node.place = self.nodes.place_after(after) if rank.anchored else self.nodes.next_place()
        node.since = rank.base
        self.nodes.add(node)

    def end(self, rank: RankPlace, node: Node, key: str) -> Node:
        """Finish an unfinished line; return the node that now stands for it."""
        if node.place > rank.last:
            equal = self._join(rank, key, node.touched)
        else:
            equal = self._join_late(rank, key, node)
        if equal is not None:
            self.nodes.remove(node)
            return equal
        self.nodes.rekey(node, key)
        rank.own.append(node)
        rank.last = max(rank.last, node.place)
        return node

    def take_back(self, rank: RankPlace, node: Node) -> Node | None:
        """Make a finished line of a rank unfinished again; None if it is not there any more."""
        if not node.mask & rank.bit:
            return None
        since = node.place - 1
        if rank.base == node.place:
            rank.base = since
        if rank.last == node.place:
            rank.last = since
        if node.mask == rank.bit:
            self.nodes.rekey(node, None)
            rank.own = [own for own in rank.own if own is not node]
        else:
            self.leave(rank, node)
            place = self.nodes.place_after(node.place)
            node = Node(place, rank.bit, node.kind, node.text, None, node.weight, node.touched)
            self.nodes.add(node)
        node.since = since
        return node

    def leave(self, rank: RankPlace, node: Node) -> None:
        """Take a rank out of a node, and the node out of the list if nobody is left."""
        if node.mask == rank.bit:
            self.nodes.remove(node)
        else:
            node.mask &= ~rank.bit
            node.rendered = None

    def clear(self, rank: RankPlace) -> None:
        """Take a rank out of all nodes; what it puts out next goes where its first node was."""
        mine = [node for node in self.nodes.items if node.mask & rank.bit]
        self._leave_all(rank, mine)
        rank.restart(at=mine[0].place - 1 if mine else None)

    def skip(self, rank: RankPlace, lines: int) -> None:
        """Note that lines of a rank are not taken in; its end begins anew behind them."""
        self._set_boundary()
        assert self.boundary is not None
        mine = [
            node
            for node in self.nodes.following(self.boundary)
            if node.mask & rank.bit and node.is_line and node.key is not None
        ]
        self.unseen += lines + sum(1 for node in mine if not node.shown)
        rank.left_out += lines + len(mine)
        rank.lost = True
        self._leave_all(rank, mine)

    def trim(self) -> None:
        """Drop nodes between head and tail where there are too many.

        Of the tail every rank keeps a fair share, so that a rank that prints for ever does
        not push out the last lines of the others.
        """
        if self.nodes.weight <= self._limit:
            return
        self._set_boundary()
        assert self.boundary is not None
        tail = list(self.nodes.following(self.boundary))
        for lines in (True, False):
            self._trim([node for node in tail if node.is_line == lines])
        self._limit = self.nodes.weight + SLACK
        for rank in self.places.values():
            rank.own = [node for node in rank.own if node.mask == rank.bit]

    def _join(self, rank: RankPlace, key: str, now: float) -> Node | None:
        nodes = self.nodes
        node = nodes.find(key, rank.base, rank.bit) or nodes.find(key, rank.last, rank.bit)
        if node is None or (node.place - rank.base > WINDOW * GAP and not rank.lost):
            return None
        if node.place < rank.last:
            own = [n for n in rank.own if n.mask == rank.bit and n.place > node.place]
            if not nodes.move_before(sorted(own, key=place_of), node):
                return None
        self._add(rank, node, now)
        rank.base = rank.last = node.place
        rank.own.clear()
        rank.lost = False
        return node

    def _join_late(self, rank: RankPlace, key: str, line: Node) -> Node | None:
        node = self.nodes.find(key, line.since, rank.bit)
        if node is None or node.place - line.since > WINDOW * GAP:
            return None
        self._add(rank, node, line.touched)
        rank.base = max(rank.base, node.place)
        rank.last = max(rank.last, node.place)
        return node

    def _add(self, rank: RankPlace, node: Node, now: float) -> None:
        owner = self._by_bit.get(node.mask)
        if owner is not None:
            owner.base = max(owner.base, node.place)
        node.mask |= rank.bit
        node.touched = now
        node.rendered = None

    def _leave_all(self, rank: RankPlace, nodes: list[Node]) -> None:
        for node in nodes:
            node.mask &= ~rank.bit
            node.rendered = None
        self.nodes.remove_all(lambda node: node.mask == 0)

    def _set_boundary(self) -> None:
        if self.boundary is not None:
            return
        weight = 0
        self.boundary = 0
        for node in self.nodes.items:
            weight += node.weight
            if weight > HEAD:
                break
            self.boundary = node.place

    def _trim(self, tail: list[Node]) -> None:
        weights: dict[int, int] = defaultdict(int)
        for node in tail:
            weights[node.mask] += node.weight
        if sum(weights.values()) <= TAIL:
            return
        bits = {mask: [bit for bit in self._by_bit if mask & bit] for mask in weights}
        shares: dict[int, float] = defaultdict(float)
        for mask, weight in weights.items():
            for bit in bits[mask]:
                shares[bit] += weight / len(bits[mask])
        level = _fair_level(sorted(shares.values()), TAIL)
        kept: dict[int, float] = defaultdict(float)
        full: set[int] = set()
        for node in reversed(tail):
            mask = node.mask
            if mask not in full:
                for bit in bits[mask]:
                    kept[bit] += node.weight / len(bits[mask])
                if all(kept[bit] >= level for bit in bits[mask]):
                    full.add(mask)
            elif node.key is not None:
                for bit in bits[mask]:
                    self._by_bit[bit].left_out += 1
                    self._by_bit[bit].lost = True
                self.unseen += not node.shown
                node.mask = 0
        self.nodes.remove_all(lambda node: node.mask == 0)


def _fair_level(shares: list[float], total: float) -> float:
    """The largest share such that all shares, cut to it, sum up to at most the total."""
    for position, share in enumerate(shares):
        left = len(shares) - position
        if share * left >= total:
            return total / left
        total -= share
    return shares[-1]
