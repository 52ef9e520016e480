"""What grew between two moments, and what would free memory if it were deleted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mlxbench_kernel.memory.holdings import NONE, UNKNOWN, Holdings
from mlxbench_kernel.memory.walk import ERROR, RESULTS

NARROW = 0.9  # a part with that much of a change is named instead of the whole
ELSEWHERE = "something that is no variable"
_HOW = {
    RESULTS: "%reset -f out",
    ERROR: "import sys; sys.last_value = sys.last_exc = sys.last_traceback = None; "
    "get_ipython().InteractiveTB.tb = None",
}
_NO_VARIABLE = "snapshots"  # to be let go of by whoever keeps them


@dataclass(frozen=True)
class Grown:
    """One name at two moments.

    Attributes
    ----------
    path, kind
        Of the node, as in `Holdings`; where it is gone, of then.
    bytes, nodes, arrays
        By how much it grew: bytes of buffers, nodes of lazy graphs, arrays. Negative where it
        shrank.
    before, after
        Bytes then and now.
    """

    path: str
    kind: str
    bytes: int
    nodes: int
    arrays: int
    before: int
    after: int


@dataclass(frozen=True)
class Freeable:
    """What deleting one variable would do.

    Attributes
    ----------
    name, type
        The variable and its class, or the dtype of an array. Variables that hold nearly the same
        stand together: ``x, y``.
    bytes
        That nobody else holds. MLX keeps them as cache for arrays to come; `mx.clear_cache`
        gives them back to the system.
    nodes
        Of the lazy graphs behind it.
    held_back
        Bytes that it holds and others too, by the names of those.
    how
        What to type.
    """

    name: str
    type: str
    bytes: int
    nodes: int
    held_back: dict[str, int]
    how: str


def grew(before: Holdings, after: Holdings, under: str = "") -> list[Grown]:
    """What is larger at the second moment than at the first, by name.

    A buffer that only counts for another name now (its first one is gone, say) is no growth, and
    neither is a second name for one. Where nearly all of a change lies in one part, that is named:
    ``trainer.log.losses`` and not ``trainer``.

    Parameters
    ----------
    before, after
        From `attribute`.
    under
        Whole name of a node: what grew in it. The variables by default.

    Returns
    -------
    list of Grown
        What changed in bytes or nodes, most growth in bytes first.
    """
    then, now = _Sums(before), _Sums(after)
    found = []
    for path in then.inside(under) | now.inside(under):
        grown = _grown(then, now, path)
        while inner := _narrower(then, now, grown):
            grown = inner
        if grown.bytes or grown.nodes:
            found.append(grown)
    return sorted(found, key=lambda each: (-each.bytes, -each.nodes, each.path))


def freeable(found: Holdings, count: int = 10) -> list[Freeable]:
    """The variables that would free most if they were deleted, as far as they really would.

    Parameters
    ----------
    found
        From `attribute`, with graphs.
    count
        So many at most.

    Returns
    -------
    list of Freeable
        Most bytes first; none that would free nothing. IPython's results and the
        last error's frames stand beside variables.
    """
    tops: list[int] = []
    for node, parent in enumerate(found.parents):
        tops.append(node if parent < 0 else tops[parent])
    pairs = zip(found.first, found.second, strict=True)
    holders = [{*pair} - {NONE} for pair in pairs]
    for node, buffer in zip(found.held_by, found.held, strict=True):
        holders[buffer].add(tops[node])
    frees: Counter[frozenset[int]] = Counter()
    held_back: dict[frozenset[int], Counter[str]] = {}
    for size, those in zip(found.buffer_bytes, holders, strict=True):
        frees[frozenset(those)] += size
        for one in those if len(those) > 1 else ():
            names = [ELSEWHERE if each == UNKNOWN else found.labels[each] for each in those - {one}]
            held_back.setdefault(frozenset([one]), Counter()).update(dict.fromkeys(names, size))
    alone = dict(frees)
    for group in [each for each in frees if len(each) > 1]:
        inside = sum(size for each, size in alone.items() if each < group)
        if inside > alone[group]:  # most of it some of them free without the others
            del frees[group]
        else:
            frees[group] += inside
    return [
        Freeable(
            ", ".join(found.labels[node] for node in nodes),
            found.types[nodes[0]],
            size,
            sum(found.nodes[node] for node in nodes),
            dict(held_back.get(group, Counter()).most_common()),
            _how([found.labels[node] for node in nodes]),
        )
        for group, size in frees.most_common()
        if size and all(_is_variable(found, node) for node in group) and (nodes := sorted(group))
    ][:count]


def _how(labels: list[str]) -> str:
    """What to type so that all of them are gone."""
    variables = [label for label in labels if label not in _HOW]
    deleted = [f"del {', '.join(variables)}"] if variables else []
    return " and ".join([*deleted, *(_HOW[label] for label in labels if label in _HOW)])


def _is_variable(found: Holdings, node: int) -> bool:
    return node != UNKNOWN and found.kinds[node] != _NO_VARIABLE


class _Sums:
    """Rows of holdings by path."""

    def __init__(self, found: Holdings) -> None:
        self.found = found
        self.rows: dict[str, int] = {}
        self.children: dict[str, set[str]] = {"": set()}
        arrays = [int(shape is not None) for shape in found.shapes]
        for node in range(len(arrays) - 1, -1, -1):
            if found.parents[node] >= 0:
                arrays[found.parents[node]] += arrays[node]
        self.arrays = arrays
        for node, (path, parent) in enumerate(zip(found.paths, found.parents, strict=True)):
            self.rows[path] = node
            self.children.setdefault(found.paths[parent] if parent >= 0 else "", set()).add(path)

    def inside(self, path: str) -> set[str]:
        return self.children.get(path, set())

    def row(self, path: str) -> tuple[int, int, int, int]:
        """Bytes, those with what is shared, nodes and arrays; nothing for what is not there."""
        node = self.rows.get(path)
        if node is None:
            return 0, 0, 0, 0
        held = self.found.bytes[node]
        return held, held + self.found.shared[node], self.found.nodes[node], self.arrays[node]


def _grown(then: _Sums, now: _Sums, path: str) -> Grown:
    bytes_then, reached_then, nodes_then, arrays_then = then.row(path)
    bytes_now, reached_now, nodes_now, arrays_now = now.row(path)
    more, reached = bytes_now - bytes_then, reached_now - reached_then
    where = now if path in now.rows else then
    return Grown(
        path,
        where.found.kinds[where.rows[path]],
        min(more, max(reached, 0)) if more > 0 else more,
        nodes_now - nodes_then,
        arrays_now - arrays_then,
        bytes_then,
        bytes_now,
    )


def _narrower(then: _Sums, now: _Sums, whole: Grown) -> Grown | None:
    """The part in which nearly all of a change lies, if it is there at both moments."""
    if not (whole.bytes or whole.nodes):
        return None
    for path in then.inside(whole.path) & now.inside(whole.path):
        part = _grown(then, now, path)
        if _most(part.bytes, whole.bytes) and _most(part.nodes, whole.nodes):
            return part
    return None


def _most(part: int, whole: int) -> bool:
    return abs(part) >= NARROW * abs(whole) and part * whole >= 0
