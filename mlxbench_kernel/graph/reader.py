"""Reads lazy arrays into a `Graph`, without evaluating or changing anything."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlxbench_kernel import native
from mlxbench_kernel.graph.model import Graph

# A primitive and an edge in what MLX writes (mlx/graph_utils.cpp, 0.32.4).
_PRIMITIVE = re.compile(r'^\{ (\d+) \[label ="(.*)", shape=rectangle\]; \}$')
_EDGE = re.compile(r'^(?:"(?P<array>.+)" -> (?P<into>\d+)|(?P<of>\d+) -> "(?P<output>.+)")$')


def read(outputs: Sequence[mx.array], own: Sequence[mx.array] = ()) -> Graph:
    """Read what arrays are computed from.

    Parameters
    ----------
    outputs
        Lazy arrays, or evaluated ones, which are nodes of their own.
    own
        Objects that do not count as holding their arrays (`Graph.held`).

    Returns
    -------
    Graph
        Without names and scopes. Where there is no native module it has only primitives and
        edges (`Graph.complete` is False).
    """
    module = native.load()
    if module is None:
        return _read_dot(outputs)
    flat = module.read_graph(list(outputs), [module.array_id(array) for array in own])
    nodes = len(flat["primitive"])
    return Graph(
        scope=np.zeros(nodes, np.int32),
        phase=np.zeros(nodes, np.uint8),
        primitives=tuple(flat.pop("primitives")),
        dtypes=tuple(flat.pop("dtypes")),
        texts=tuple(flat.pop("texts")),
        fused={node: tuple(inside) for node, inside in flat.pop("fused")},
        **flat,
    )


def _read_dot(outputs: Sequence[mx.array]) -> Graph:
    """Only primitives and edges, from MLX's own export; recursive, so not for deep graphs."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    names: dict[str, str] = {}
    takes: dict[str, list[str]] = {}
    gives: dict[str, list[str]] = {}
    for line in text.getvalue().splitlines():
        if match := _PRIMITIVE.match(line):
            names[match[1]] = match[2]
        elif match := _EDGE.match(line):
            if match["array"] is not None:
                takes.setdefault(match["into"], []).append(match["array"])
            else:
                gives.setdefault(match["of"], []).append(match["output"])
    computed = {array for given in gives.values() for array in given}
    leaves = dict.fromkeys(a for taken in takes.values() for a in taken if a not in computed)
    numbers = {array: number for number, array in enumerate(leaves)}
    primitives = ["", *dict.fromkeys(names.values())]
    primitive, node = [0] * len(leaves), list(range(len(leaves)))
    output_start, input_start = list(range(len(leaves) + 1)), [0] * (len(leaves) + 1)
    inputs: list[int] = []
    for each, name in names.items():
        inputs += [numbers[array] for array in takes.get(each, [])]
        for array in gives.get(each, []):
            numbers[array] = len(node)
            node.append(len(primitive))
        primitive.append(primitives.index(name))
        input_start.append(len(inputs))
        output_start.append(len(node))
    used = set(inputs)
    ends = [number for number in range(len(node)) if number not in used] or [len(node) - 1]
    return _unknown(primitive, node, output_start, input_start, inputs, ends, primitives)


def _unknown(
    primitive: list[int],
    node: list[int],
    output_start: list[int],
    input_start: list[int],
    inputs: list[int],
    outputs: list[int],
    primitives: list[str],
) -> Graph:
    """A graph of which nothing else is known."""
    nodes, arrays = np.zeros(len(primitive), np.int32), np.zeros(len(node), np.int32)
    wide = arrays.astype(np.int64)
    return Graph(
        primitive=np.array(primitive, np.int32),
        arguments=nodes,
        device=nodes.astype(np.uint8),
        stream=np.where(np.array(primitive, np.int32) == 0, -1, 0).astype(np.int32),
        scope=nodes,
        phase=nodes.astype(np.uint8),
        output_start=np.array(output_start, np.int32),
        input_start=np.array(input_start, np.int32),
        inputs=np.array(inputs, np.int32),
        node=np.array(node, np.int32),
        dtype=arrays,
        shape_start=np.zeros(len(node) + 1, np.int32),
        extents=np.zeros(0, np.int64),
        nbytes=wide,
        status=arrays.astype(np.uint8),
        held=arrays,
        buffer=arrays.astype(np.uint64),
        buffer_bytes=wide,
        id=np.arange(len(node), dtype=np.uint64),
        outputs=np.array(outputs, np.int32),
        primitives=tuple(primitives),
        dtypes=("",),
        texts=("",),
        complete=False,
    )
