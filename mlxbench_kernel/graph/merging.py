"""Two compared graphs in one, so that one view shows both."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Graph, Indices, Sizes

Entry = TypeVar("Entry", bound=Hashable)
Value = TypeVar("Value")


class State(IntEnum):
    """What became of a node from the first graph to the second."""

    SAME = 0
    ADDED = 1
    REMOVED = 2
    CHANGED = 3


def merge(
    a: Graph, b: Graph, pairs: Indices, removed: Indices, state: NDArray[np.int8]
) -> tuple[Graph, NDArray[np.int8]]:
    """The second graph with the nodes that only the first has.

    Parameters
    ----------
    a, b
        The graphs.
    pairs : int32 [pairs, 2]
        Nodes of `a` and `b` that are the same or changed.
    removed : int32
        Nodes that only `a` has.
    state : int8 [nodes of b]

    Returns
    -------
    graph
        A node of `b` takes what it took there, and after that what its partner took of the nodes
        that were removed, unless that would close a circle.
    state : int8 [nodes]
    """
    partner = np.full(a.nodes, -1, np.int64)
    partner[pairs[:, 0]] = pairs[:, 1]
    # Both graphs in a row: nodes and arrays of `a` are counted on from those of `b`.
    only = np.zeros(a.nodes, np.bool_)
    only[removed] = True
    after = _places(a, partner, removed, only)
    keys = np.concatenate([np.arange(b.nodes), after[removed]])
    late = np.concatenate([np.zeros(b.nodes), 1 + removed.astype(np.float64)])
    order = np.lexsort((late, keys))
    stacked = np.concatenate([np.arange(b.nodes), b.nodes + removed.astype(np.int64)])[order]
    number = np.full(b.nodes + a.nodes, -1, np.int64)
    number[stacked] = np.arange(len(stacked))
    targets, arrays = _edges(a, b, partner, only, after)
    targets = number[targets]
    by_target = np.argsort(targets, kind="stable")
    counts = np.concatenate([np.diff(b.output_start), np.diff(a.output_start)])[stacked]
    starts = np.concatenate([b.output_start[:-1], a.output_start[:-1] + b.arrays])[stacked]
    kept = _ranges(starts.astype(np.int64), counts.astype(np.int64))
    array_number = np.full(b.arrays + a.arrays, -1, np.int64)
    array_number[kept] = np.arange(len(kept))
    result = _joined(a, b, stacked, kept).with_(
        output_start=_from_counts(counts),
        node=np.repeat(np.arange(len(stacked)), counts).astype(np.int32),
        input_start=_from_counts(np.bincount(targets, minlength=len(stacked))),
        inputs=array_number[arrays[by_target]].astype(np.int32),
        outputs=_kept(array_number, np.concatenate([b.outputs, a.outputs + b.arrays])),
        names={
            **_renumbered(a.names, array_number[b.arrays :]),
            **_renumbered(b.names, array_number),
        },
        fused={
            **_renumbered(a.fused, number[b.nodes :]),
            **_renumbered(b.fused, number),
        },
        complete=a.complete and b.complete,
    )
    states = np.concatenate([state, np.full(a.nodes, State.REMOVED, np.int8)])[stacked]
    return result, states


def _places(
    a: Graph, partner: NDArray[np.int64], removed: Indices, only: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For nodes that were removed, the last node of the other graph that they depend on."""
    after = np.where(only, -1, partner).tolist()
    start, sources = a.input_start.tolist(), a.sources.tolist()
    for node in removed.tolist():
        taken = sources[start[node] : start[node + 1]]
        after[node] = max((after[source] for source in taken), default=-1)
    return np.array(after, np.int64)


def _edges(
    a: Graph,
    b: Graph,
    partner: NDArray[np.int64],
    only: NDArray[np.bool_],
    after: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Targets and arrays of all edges, as nodes and arrays of both graphs in a row."""
    source, target, array = a.sources, a.targets, a.inputs.astype(np.int64)
    # An array of `a` is that of the partner, where it has as many outputs.
    place = array - a.output_start[source]
    theirs = np.maximum(partner[source], 0)
    place = np.minimum(place, np.diff(b.output_start)[theirs] - 1) if b.nodes else place
    same = b.output_start[theirs] + place if b.nodes else array
    mapped = np.where(only[source], array + b.arrays, same)
    inside = only[target]
    into = only[source] & ~only[target]
    into &= partner[target] > after[source]
    return (
        np.concatenate(
            [
                b.targets.astype(np.int64),
                partner[target[into]],
                target[inside] + np.int64(b.nodes),
            ]
        ),
        np.concatenate([b.inputs.astype(np.int64), mapped[into], mapped[inside]]),
    )


def _joined(a: Graph, b: Graph, nodes: NDArray[np.int64], arrays: NDArray[np.int64]) -> Graph:
    """All that is known of each node and array; edges are left as they are in `b`."""
    primitives, primitive = _tables(b.primitives, b.primitive, a.primitives, a.primitive)
    texts, arguments = _tables(b.texts, b.arguments, a.texts, a.arguments)
    scopes, scope = _tables(b.scopes, b.scope, a.scopes, a.scope)
    dtypes, dtype = _tables(b.dtypes, b.dtype, a.dtypes, a.dtype)
    starts = np.concatenate([b.shape_start[:-1], a.shape_start[:-1] + len(b.extents)])[arrays]
    counts = np.concatenate([np.diff(b.shape_start), np.diff(a.shape_start)])[arrays]
    extents = np.concatenate([b.extents, a.extents])
    others = {
        name: np.concatenate([getattr(b, name), getattr(a, name)])[index]
        for names, index in (
            (("device", "stream", "phase"), nodes),
            (("nbytes", "status", "held", "buffer", "buffer_bytes", "id"), arrays),
        )
        for name in names
    }
    return b.with_(
        primitives=primitives,
        primitive=primitive[nodes],
        texts=texts,
        arguments=arguments[nodes],
        scopes=scopes,
        scope=scope[nodes],
        dtypes=dtypes,
        dtype=dtype[arrays],
        shape_start=_from_counts(counts),
        extents=extents[_ranges(starts.astype(np.int64), counts.astype(np.int64))],
        **others,
    )


def _tables(
    first: Sequence[Entry], of_first: Indices, second: Sequence[Entry], of_second: Indices
) -> tuple[tuple[Entry, ...], Indices]:
    """One table for two, and the indices into it."""
    index = {entry: number for number, entry in enumerate(dict.fromkeys((*first, *second)))}
    moved = [
        np.array([index[entry] for entry in table], np.int32)[of]
        for table, of in ((first, of_first), (second, of_second))
    ]
    return tuple(index), np.concatenate(moved)


def _from_counts(counts: NDArray[np.int64] | Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _ranges(starts: Sizes, counts: Sizes) -> Sizes:
    """The numbers of all ranges, one after the other."""
    first = np.repeat(starts - np.cumsum(counts) + counts, counts)
    return first + np.arange(int(counts.sum()))


def _kept(number: NDArray[np.int64], arrays: NDArray[np.int64] | Indices) -> Indices:
    moved = number[arrays]
    return moved[moved >= 0].astype(np.int32)


def _renumbered(values: Mapping[int, Value], number: NDArray[np.int64]) -> dict[int, Value]:
    return {int(number[key]): value for key, value in values.items() if number[key] >= 0}
