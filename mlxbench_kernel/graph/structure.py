"""Hashes of what nodes are and of how they hang together; the same ones for every graph.

They do not depend on MLX's ids, on indices into a graph's own tables or on the process, so nodes
of one graph can be compared with those of another. 64 bits: two different nodes among a million
are taken for equal with a chance of about one in 40 million.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Graph, Indices

Hashes = NDArray[np.uint64]

_ODD = np.array([0x9E3779B97F4A7C15], np.uint64)  # an array: scalars warn of overflow


def mix(values: Hashes) -> Hashes:
    """Spread 64-bit values (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def joined(first: Hashes, second: Hashes) -> Hashes:
    """One hash for two, of which the order counts."""
    return mix(first * _ODD + mix(second + _ODD))


def text_hashes(texts: Iterable[str]) -> Hashes:
    """A hash per text, the same in every process (``hash`` of a str is not)."""
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def sums(values: Hashes, start: Indices) -> Hashes:
    """The sum of each segment, modulo 2^64.

    Parameters
    ----------
    values : uint64 [values]
    start : int32 [segments + 1]
        Where each segment begins.
    """
    total = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=total[1:])
    return total[start[1:]] - total[start[:-1]]


def positions(start: Indices) -> Indices:
    """The place of each value within its segment. int32 [values]"""
    lengths = np.diff(start)
    within = np.arange(int(start[-1])) - np.repeat(start[:-1].astype(np.int64), lengths)
    return within.astype(np.int32)


def array_hashes(graph: Graph) -> Hashes:
    """Of dtype and shape. uint64 [arrays]"""
    place = positions(graph.shape_start).astype(np.uint64)
    extents = joined(place, graph.extents.astype(np.uint64))
    dtypes = text_hashes(graph.dtypes)[graph.dtype]
    return joined(dtypes, sums(extents, graph.shape_start))


def primitive_hashes(graph: Graph) -> Hashes:
    """Of the primitive, and of those that a compiled one holds. uint64 [nodes]"""
    hashes = text_hashes(graph.primitives)[graph.primitive]
    if graph.fused:
        fused = np.fromiter(graph.fused, np.int64, len(graph.fused))
        inside = text_hashes(" ".join(primitives) for primitives in graph.fused.values())
        hashes[fused] = joined(text_hashes(["Compiled"]), inside)
    return hashes


def node_hashes(graph: Graph, arguments: bool = True) -> Hashes:
    """Of primitive, shapes and dtypes of the outputs, and arguments if wanted. uint64 [nodes]"""
    place = positions(graph.output_start).astype(np.uint64)
    outputs = sums(joined(place, array_hashes(graph)), graph.output_start)
    hashes = joined(primitive_hashes(graph), outputs)
    if arguments:
        hashes = joined(hashes, text_hashes(graph.texts)[graph.arguments])
    return hashes


def group_hashes(
    hashes: Hashes, sources: Indices, targets: Indices, group: Indices, groups: int
) -> Hashes:
    """Of what each group holds: its nodes, and the edges between them.

    Two rounds of Weisfeiler and Lehman's colouring (1968), along the edges within groups only, so
    that it does not count what a group stands next to.

    Parameters
    ----------
    hashes : uint64 [nodes]
    sources, targets : int32 [edges]
        Nodes.
    group : int32 [nodes]
        -1 for nodes that are in none.
    groups
        How many there are.

    Returns
    -------
    uint64 [groups]
    """
    within = (group[sources] == group[targets]) & (group[sources] >= 0)
    sources, targets = sources[within], targets[within]
    for _ in range(2):
        near = np.zeros_like(hashes)
        np.add.at(near, targets, mix(hashes[sources]))
        np.add.at(near, sources, joined(hashes[targets], _ODD))
        hashes = joined(hashes, near)
    result = np.zeros(groups, np.uint64)
    inside = group >= 0
    np.add.at(result, group[inside], mix(hashes[inside]))
    return result
