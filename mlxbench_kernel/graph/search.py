"""Finds nodes by what they are called, what they are, and where they stand; and ways between."""

from __future__ import annotations

from collections import deque

import numpy as np

from mlxbench_kernel.graph.model import Graph


def search(graph: Graph, text: str) -> list[int]:
    """The nodes in which all words of a text are found, in any of their fields.

    Parameters
    ----------
    graph
        Where to look.
    text
        Words, small or capital: parts of the user's names, of primitives and what was fused, of
        shapes as ``[4,8]``, dtypes, arguments, paths and classes of modules, phases, devices.

    Returns
    -------
    list of int
        Numbers of nodes, in order.
    """
    found = np.ones(graph.nodes, bool)
    words = text.lower().split()
    if not words:
        return []
    for word in words:
        found &= _with(graph, word)
    return [int(node) for node in np.flatnonzero(found)]


def _with(graph: Graph, word: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    def among(texts: list[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.array([word in text.lower() for text in texts], bool)

    found = among([_spoken(name) for name in graph.primitives])[graph.primitive]
    found |= among(list(graph.texts))[graph.arguments]
    found |= among([f"{scope.path} {scope.kind}" for scope in graph.scopes])[graph.scope]
    found |= among(["forward", "backward", "optimizer"])[graph.phase]
    computed = graph.primitive != 0
    found |= among(["cpu", "gpu"])[graph.device] & computed
    if graph.complete:
        found[graph.node[among(list(graph.dtypes))[graph.dtype]]] = True
        found[graph.node[_of_shape(graph, word)]] = True
    for array, name in graph.names.items():
        if word in name.lower():
            found[graph.node[array]] = True
    for node, inside in graph.fused.items():
        if any(word in name.lower() for name in inside):
            found[node] = True
    return found


def _spoken(primitive: str) -> str:
    from mlxbench_kernel.graph.model import COLLECTIVES

    return f"{primitive} {COLLECTIVES.get(primitive, '')}" if primitive else "input constant"


def _of_shape(graph: Graph, word: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The arrays with a shape that is written as the word is, as ``[4,8]`` or ``4x8``."""
    written = word.strip("[]()").replace("x", ",")
    extents = written.split(",")
    if not all(extent.isdigit() for extent in extents):
        return np.zeros(0, np.int64)
    wanted = [int(extent) for extent in extents]
    start, ndim = graph.shape_start[:-1], np.diff(graph.shape_start)
    fits = ndim == len(wanted)
    for axis, extent in enumerate(wanted):
        places = np.minimum(start + axis, max(len(graph.extents) - 1, 0))
        if len(graph.extents):
            fits &= graph.extents[places] == extent
    return np.flatnonzero(fits)


def path(graph: Graph, one: int, other: int) -> list[int]:
    """A shortest way along the edges between two nodes, in whichever direction there is one.

    Returns
    -------
    list of int
        The nodes, from what is needed to what needs it; empty without a way.
    """
    if one > other:
        one, other = other, one
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    after: dict[int, int] = {other: other}
    waiting = deque([other])
    while waiting:
        node = waiting.popleft()
        if node == one:
            break
        for source in sources[start[node] : start[node + 1]]:
            if source >= one and source not in after:  # what is needed stands before
                after[source] = node
                waiting.append(source)
    if one not in after:
        return []
    found = [one]
    while found[-1] != other:
        found.append(after[found[-1]])
    return found
