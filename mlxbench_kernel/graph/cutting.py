"""A graph from given arrays on, which are taken to be evaluated though they have no memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlxbench_kernel.graph.model import Graph


def cut(graph: Graph, given: Mapping[int, bool]) -> Graph:
    """A graph that begins at some of its arrays, as if they were evaluated.

    So that what a computation takes can be predicted before its parameters are loaded: in their
    place stand lazy arrays of the same shapes and dtypes.

    Parameters
    ----------
    graph
        As `read` gives it.
    given
        MLX's ids of arrays (`Graph.id`), each with whether something else holds it, so that its
        memory cannot be taken over. Those that are not in the graph do not matter.

    Returns
    -------
    Graph
        Without names, scopes and phases, and without what only the given arrays are made from.
        Each of these has a buffer of its own, of its own size.
    """
    ids = graph.id.tolist()
    found = {array: given[ids[array]] for array in range(graph.arrays) if ids[array] in given}
    ends = np.zeros(graph.nodes, bool)
    ends[graph.node[list(found)]] = True
    stays = _needed(graph, ends)
    nodes = np.flatnonzero(stays)
    arrays = np.flatnonzero(stays[graph.node])
    number = np.full(graph.arrays, -1, np.int32)  # of each array that stays
    number[arrays] = np.arange(len(arrays))
    takes = np.diff(graph.input_start)
    takes[ends] = 0
    edges = np.repeat(stays & ~ends, np.diff(graph.input_start))
    extents = np.diff(graph.shape_start)
    held, buffer = graph.held.copy(), graph.buffer.copy()
    buffer_bytes = graph.buffer_bytes.copy()
    for array, is_held in found.items():
        held[array], buffer[array] = is_held, array + 1
        buffer_bytes[array] = graph.nbytes[array]
    renumbered = np.cumsum(stays) - 1
    return Graph(
        primitive=np.where(ends, 0, graph.primitive)[nodes],
        arguments=graph.arguments[nodes],
        device=graph.device[nodes],
        stream=graph.stream[nodes],
        scope=np.zeros(len(nodes), np.int32),
        phase=np.zeros(len(nodes), np.uint8),
        output_start=_starts(np.diff(graph.output_start)[nodes]),
        input_start=_starts(takes[nodes]),
        inputs=number[graph.inputs[edges]],
        node=renumbered[graph.node[arrays]].astype(np.int32),
        dtype=graph.dtype[arrays],
        shape_start=_starts(extents[arrays]),
        extents=graph.extents[np.repeat(stays[graph.node], extents)],
        nbytes=graph.nbytes[arrays],
        status=graph.status[arrays],
        held=held[arrays],
        buffer=buffer[arrays],
        buffer_bytes=buffer_bytes[arrays],
        id=graph.id[arrays],
        outputs=number[graph.outputs],
        primitives=graph.primitives,
        dtypes=graph.dtypes,
        texts=graph.texts,
        fused={int(renumbered[n]): inside for n, inside in graph.fused.items() if stays[n]},
        title=graph.title,
        complete=graph.complete,
    )


def _needed(
    graph: Graph, ends: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The nodes that the outputs need, up to `ends`, with those. bool [nodes]"""
    stays = np.zeros(graph.nodes, bool)
    waiting = np.unique(graph.node[graph.outputs]).tolist()
    stays[waiting] = True
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    while waiting:
        node = waiting.pop()
        if ends[node]:
            continue
        for source in sources[start[node] : start[node + 1]]:
            if not stays[source]:
                stays[source] = True
                waiting.append(source)
    return stays


def _starts(
    lengths: np.ndarray[tuple[int], np.dtype[np.int32]],
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
