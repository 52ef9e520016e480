"""Finds nodes by what they are called, what they are, and where they stand; and ways between."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.merging import State
from mlxbench_kernel.graph.model import COLLECTIVES, Graph, Phase

# A list in brackets with what stands close to it, a shape without brackets, or what has no spaces.
_WORD = re.compile(
    r"[^\s\[(]*[\[(][\d\s,x×]*(?:[\])]\S*|$)|(?<!\S)\d+(?:\s*[,x×]\s*\d+)+,?(?!\S)|\S+"
)
_BETWEEN = re.compile(r"\s*[,x×]\s*")
_SPACES = re.compile(r"\s+")
_MOST = np.iinfo(np.int64).max


def search(graph: Graph, text: str, states: NDArray[np.int8] | None = None) -> list[int]:
    """The nodes in which all words of a text are found, in any of their fields.

    Parameters
    ----------
    graph
        Where to look.
    text
        Words, small or capital: parts of the user's names, of primitives and what was fused,
        dtypes, arguments, paths and classes of modules, phases, devices. A shape is written as
        ``(4, 8)``, ``[4, 8]``, ``4x8`` or ``4, 8``; that of a scalar is ``()``.
    states : int8 [nodes]
        Of two graphs in one, what became of each node: then ``added``, ``removed``, ``changed``
        and ``same`` are words, too.

    Returns
    -------
    list of int
        Numbers of nodes, in order.
    """
    words = _WORD.findall(text.lower())
    if not words:
        return []
    found = np.ones(graph.nodes, np.bool_)
    for word in words:
        shape = _shape(word)
        if shape is None:
            found &= _with(graph, word, states)
        else:
            found &= _of_shape(graph, shape)
    return [int(node) for node in np.flatnonzero(found)]


def _with(graph: Graph, word: str, states: NDArray[np.int8] | None) -> NDArray[np.bool_]:
    """Whether a word is in any field of each node."""

    def among(texts: Iterable[str]) -> NDArray[np.bool_]:
        return np.array([word in text.lower() for text in texts], np.bool_)

    found = among(_spoken(name) for name in graph.primitives)[graph.primitive]
    found |= _in_arguments(graph.texts, word)[graph.arguments]
    found |= among(f"{scope.path} {scope.kind}" for scope in graph.scopes)[graph.scope]
    found |= among(phase.name for phase in Phase)[graph.phase]
    computed = graph.primitive != 0
    found |= among(["cpu", "gpu"])[graph.device] & computed
    if graph.complete:
        found[graph.node[among(graph.dtypes)[graph.dtype]]] = True
        if word.isdigit():
            found |= _of_shape(graph, [int(word)])
    for array, name in graph.names.items():
        if word in name.lower():
            found[graph.node[array]] = True
    for node, inside in graph.fused.items():
        if any(word in name.lower() for name in inside):
            found[node] = True
    # Whole words: who looks for "add" means the primitive.
    if states is not None and word.upper() in State.__members__:
        found |= states == State[word.upper()]
    return found


def _spoken(primitive: str) -> str:
    return f"{primitive} {COLLECTIVES.get(primitive, '')}" if primitive else "input constant"


def _in_arguments(texts: Iterable[str], word: str) -> NDArray[np.bool_]:
    """Whether a word is in each text; spaces in lists are nobody's business."""
    close = _SPACES.sub("", word)
    return np.array([close in _SPACES.sub("", text.lower()) for text in texts], np.bool_)


def _shape(word: str) -> list[int] | None:
    """The shape that a word is written as; None for other words, and for a number alone."""
    bare = word.strip("[]() ")
    if bare == word and (word.isdigit() or not word[:1].isdigit()):
        return None
    extents = [extent for extent in _BETWEEN.split(bare) if extent]
    if not all(extent.isdigit() for extent in extents):
        return None
    return [int(extent) for extent in extents]


def _of_shape(graph: Graph, shape: list[int]) -> NDArray[np.bool_]:
    """Whether each node has an output of a shape."""
    found = np.zeros(graph.nodes, np.bool_)
    if not graph.complete or any(extent > _MOST for extent in shape):
        return found
    start = graph.shape_start[:-1]
    fits = np.diff(graph.shape_start) == len(shape)
    for axis, extent in enumerate(shape):
        places = np.minimum(start + axis, max(len(graph.extents) - 1, 0))
        if len(graph.extents):
            fits &= graph.extents[places] == extent
    found[graph.node[fits]] = True
    return found


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
