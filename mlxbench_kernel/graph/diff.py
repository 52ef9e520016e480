"""What is different between two graphs: before and after a change, two shapes, two ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.collective_order import (
    CollectiveDifference,
    first_collective_difference,
)
from mlxbench_kernel.graph.exports import line_of
from mlxbench_kernel.graph.given import check_graph
from mlxbench_kernel.graph.input_names import comparable_names
from mlxbench_kernel.graph.matching import Fingerprints, Matching, partners
from mlxbench_kernel.graph.merging import State, merge
from mlxbench_kernel.graph.model import Graph, Indices
from mlxbench_kernel.graph.structure import Hashes, joined, positions, sums, text_hashes

__all__ = [
    "Change",
    "CollectiveDifference",
    "GraphDiff",
    "State",
    "diff",
    "first_collective_difference",
]

MOST = 100  # lines of each sort in a text
MOST_INPUTS = 6  # named in a line


@dataclass(frozen=True)
class Change:
    """A node that both graphs have at the same place, and that is not the same in them.

    Attributes
    ----------
    before, after
        Its numbers in the first graph and in the second one.
    what
        Of ``shape``, ``dtype``, ``arguments``, ``fused``, ``name`` and ``inputs`` those that
        differ: of an input its name, of the others what they take, or in which order.
    """

    before: int
    after: int
    what: tuple[str, ...]


@dataclass(frozen=True)
class GraphDiff:
    """The difference of two graphs; `diff` makes it.

    Attributes
    ----------
    a, b
        The two graphs.
    pairs : int32 [pairs, 2]
        Nodes of `a` and of `b` that are the same, or changed.
    removed, added : int32
        Nodes that only `a` has, and only `b`.
    changed : tuple of Change
    outputs_differ
        Whether the graphs give other nodes as results, or in another order.
    """

    a: Graph
    b: Graph
    pairs: Indices
    removed: Indices
    added: Indices
    changed: tuple[Change, ...]
    outputs_differ: bool

    def __repr__(self) -> str:
        return f"<GraphDiff: {self.summary}>"

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return self.summary == "equal"

    @cached_property
    def summary(self) -> str:
        """One line: ``equal``, or ``3 added, 1 removed, 12 changed (shape)``."""
        parts = []
        if len(self.added):
            parts.append(f"{len(self.added):,} added")
        if len(self.removed):
            parts.append(f"{len(self.removed):,} removed")
        if self.changed:
            times = Counter(what for change in self.changed for what in change.what)
            parts.append(f"{len(self.changed):,} changed ({', '.join(dict(times.most_common()))})")
        if self.outputs_differ:
            parts.append("other outputs")
        return ", ".join(parts) or "equal"

    def text(self, most: int = MOST) -> str:
        """The summary, and a line per difference with its module: ``+`` added, ``-`` removed,
        ``~`` changed.

        Parameters
        ----------
        most
            Lines of each sort.
        """
        lines = [self.summary]
        for sign, graph, nodes in (("-", self.a, self.removed), ("+", self.b, self.added)):
            lines += [f"{sign} {line_of(graph, node)}" for node in nodes[:most].tolist()]
            lines += _rest(len(nodes), most, sign)
        for change in self.changed[:most]:
            lines.append(f"~ {line_of(self.b, change.after)}  [{self._before(change)}]")
        lines += _rest(len(self.changed), most, "~")
        return "\n".join(lines)

    def _before(self, change: Change) -> str:
        parts = []
        if "shape" in change.what or "dtype" in change.what:
            made = self.a.outputs_of(change.before)
            parts.append(f"was {', '.join(map(self.a.describe, made))}")
        if "arguments" in change.what:
            parts.append(f"was {self.a.arguments_text(change.before) or 'without arguments'}")
        if "fused" in change.what:
            parts.append(f"was {', '.join(self.a.fused.get(change.before, ())) or 'not fused'}")
        if "name" in change.what:
            parts.append(f"was {self.a.name(change.before)}")
        if "inputs" in change.what:
            parts.append(self._other_inputs(change))
        return "; ".join(parts)

    def _other_inputs(self, change: Change) -> str:
        """As ``takes y, x instead of x, y``: those inputs that are others."""
        before = self.a.inputs_of(change.before).tolist()
        after = self.b.inputs_of(change.after).tolist()
        if len(before) == len(after):
            pairs = [
                (old, new)
                for old, new in zip(before, after, strict=True)
                if self._partners.get(int(self.a.node[old])) != int(self.b.node[new])
                or _place(self.a, old) != _place(self.b, new)
            ]
            before, after = [old for old, _ in pairs], [new for _, new in pairs]
        texts = [
            ", ".join(_called(graph, array) for array in arrays[:MOST_INPUTS])
            + (" …" if len(arrays) > MOST_INPUTS else "")
            for graph, arrays in ((self.b, after), (self.a, before))
        ]
        return f"takes {texts[0] or 'nothing'} instead of {texts[1] or 'nothing'}"

    @cached_property
    def _partners(self) -> dict[int, int]:
        """Of nodes of `a` those of `b`."""
        return dict(self.pairs.tolist())

    def merged(self) -> tuple[Graph, NDArray[np.int8]]:
        """Both graphs in one, and a `State` for each of its nodes, for one view of both.

        Returns
        -------
        graph
            `b`, and what only `a` has, between what it was computed from and what took it.
        state : int8 [nodes]
        """
        state = np.full(self.b.nodes, State.SAME, np.int8)
        state[self.added] = State.ADDED
        state[[change.after for change in self.changed]] = State.CHANGED
        graph, states = merge(self.a, self.b, self.pairs, self.removed, state)
        titles = [title for title in dict.fromkeys((self.a.title, self.b.title)) if title]
        return graph.with_(title=" → ".join(titles)), states


def diff(a: Graph, b: Graph) -> GraphDiff:
    """Compare two graphs by names of inputs and structure; ids of MLX and values play no part.

    Inputs of the same name are the same. Nodes are paired if all around them is equal; then if
    all above or below them is; then whatever inputs they take; then without shapes and arguments;
    then by what they stand next to; and last by module and order. A node that takes other inputs
    than its partner, or the same ones in another order, has changed.

    Parameters
    ----------
    a, b
        Before and after, or of two ranks. If one of them was read without the native module,
        only primitives and edges are compared.

    Raises
    ------
    UsageError
        One of them is no graph.
    """
    check_graph("diff", a, b)
    known = a.complete and b.complete
    of_a, of_b = comparable_names(a, b)
    if not (of_a and of_b):  # names of one side alone say nothing
        of_a = of_b = {}
    sides = Fingerprints(a, known, of_a), Fingerprints(b, known, of_b)
    matching = Matching(*sides)
    pairs = partners(matching)
    return GraphDiff(
        a=a,
        b=b,
        pairs=pairs,
        removed=np.flatnonzero(matching.of_a < 0).astype(np.int32),
        added=np.flatnonzero(matching.of_b < 0).astype(np.int32),
        changed=_changes(sides, matching, pairs),
        outputs_differ=_outputs_differ(a, b, matching),
    )


def _changes(
    sides: tuple[Fingerprints, Fingerprints], matching: Matching, pairs: Indices
) -> tuple[Change, ...]:
    a, b = sides
    before, after = pairs[:, 0], pairs[:, 1]
    differs: dict[str, NDArray[np.bool_]] = {}
    if a.known:
        for what, of in (("shape", _shapes), ("dtype", _dtypes), ("arguments", _arguments)):
            differs[what] = of(a.graph)[before] != of(b.graph)[after]
    differs["fused"] = a.bare[before] != b.bare[after]
    one, other = a.called[before], b.called[after]
    differs["name"] = (one != 0) & (other != 0) & (one != other)
    differs["inputs"] = _rewired(sides, matching)[after]
    found = np.flatnonzero(np.logical_or.reduce(list(differs.values())))
    return tuple(
        Change(
            int(before[each]),
            int(after[each]),
            tuple(what for what, where in differs.items() if where[each]),
        )
        for each in found.tolist()
    )


def _shapes(graph: Graph) -> Hashes:
    place = positions(graph.shape_start).astype(np.uint64)
    shapes = sums(joined(place, graph.extents.astype(np.uint64)), graph.shape_start)
    return _over_outputs(graph, shapes)


def _dtypes(graph: Graph) -> Hashes:
    return _over_outputs(graph, text_hashes(graph.dtypes)[graph.dtype])


def _arguments(graph: Graph) -> Hashes:
    return text_hashes(graph.texts)[graph.arguments]


def _over_outputs(graph: Graph, hashes: Hashes) -> Hashes:
    place = positions(graph.output_start).astype(np.uint64)
    return sums(joined(place, hashes), graph.output_start)


def _rewired(sides: tuple[Fingerprints, Fingerprints], matching: Matching) -> NDArray[np.bool_]:
    """Nodes of the second graph that take something else than their partners. bool [nodes]

    Where an input was added or removed, that is said there already.
    """
    a, b = sides
    result = np.zeros(b.graph.nodes, np.bool_)
    partner = matching.of_b
    nodes = np.flatnonzero(partner >= 0)
    takes_a, takes_b = np.diff(a.graph.input_start), np.diff(b.graph.input_start)
    other_number = takes_a[partner[nodes]] != takes_b[nodes]
    result[nodes[other_number]] = True
    alike = np.zeros(b.graph.nodes, np.bool_)
    alike[nodes[~other_number]] = True
    edges = np.flatnonzero(alike[b.graph.targets])
    target = b.graph.targets[edges]
    same = a.graph.input_start[partner[target]] + edges - b.graph.input_start[target]
    one, other = a.graph.inputs[same], b.graph.inputs[edges]
    source_a, source_b = a.graph.node[one], b.graph.node[other]
    place_a = positions(a.graph.output_start)[one]
    place_b = positions(b.graph.output_start)[other]
    both = (matching.of_a[source_a] >= 0) & (partner[source_b] >= 0)
    parted = both & ((partner[source_b] != source_a) | (place_a != place_b))
    if parted.any():
        # Of several equal nodes it does not matter which one is taken.
        hash_a, hash_b = (a.up, b.up) if a.known else (a.bare_up, b.bare_up)
        parted &= (hash_a[source_a] != hash_b[source_b]) | (place_a != place_b)
    result[target[parted]] = True
    return result


def _outputs_differ(a: Graph, b: Graph, matching: Matching) -> bool:
    if len(a.outputs) != len(b.outputs):
        return True
    node_a, node_b = a.node[a.outputs], b.node[b.outputs]
    both = (matching.of_a[node_a] >= 0) & (matching.of_b[node_b] >= 0)
    parted = matching.of_a[node_a] != node_b
    parted |= a.outputs - a.output_start[node_a] != b.outputs - b.output_start[node_b]
    return bool((both & parted).any())


def _called(graph: Graph, array: int) -> str:
    """What an array is called, or what it is the result of, as ``Matmul (%4) in q``."""
    node = int(graph.node[array])
    if name := graph.names.get(array, ""):
        return name
    place = graph.scopes[int(graph.scope[node])].path
    text = f"{graph.label(node)} (%{node})"
    return f"{text} in {place}" if place else text


def _place(graph: Graph, array: int) -> int:
    """Which of its node's outputs an array is."""
    return array - int(graph.output_start[graph.node[array]])


def _rest(count: int, most: int, sign: str) -> list[str]:
    return [f"{sign} … and {count - most:,} more"] if count > most else []
