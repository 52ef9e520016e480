"""A graph for other tools: as text, Graphviz DOT, networkx, rustworkx, and in a file."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.model import Graph, Phase
from mlxbench_kernel.graph.saved import load, save

__all__ = ["line_of", "load", "save", "to_dot", "to_networkx", "to_rustworkx", "to_text"]


def to_text(graph: Graph, nodes: Iterable[int] | None = None) -> str:
    """One line per node: ``%12 = Matmul(%3, %7) float32 [4, 8]  layers.0.mlp``.

    ``%3`` is node 3; of a node with several outputs, ``%3.1`` is the second.

    Parameters
    ----------
    graph
        Any graph.
    nodes
        Which nodes, in this order; by default all.

    Raises
    ------
    UsageError
        There is no node of that number.
    """
    chosen = range(graph.nodes) if nodes is None else list(nodes)
    for node in chosen if nodes is not None else ():
        if not 0 <= node < graph.nodes:
            raise UsageError(f"no node {node}: the graph has nodes 0 to {graph.nodes - 1}")
    return "\n".join(line_of(graph, int(node)) for node in chosen)


def line_of(graph: Graph, node: int) -> str:
    """The line of `to_text` for a node."""
    taken = [_reference(graph, array) for array in graph.inputs_of(node).tolist()]
    if arguments := graph.arguments_text(node):
        taken.append(arguments)
    made = ", ".join(filter(None, map(graph.describe, graph.outputs_of(node))))
    call = "" if graph.is_input(node) else f"({', '.join(taken)})"
    inside = f" {{{', '.join(graph.fused[node])}}}" if node in graph.fused else ""
    line = f"%{node} = {graph.label(node)}{call}{inside} {made}".rstrip()
    place = graph.scopes[int(graph.scope[node])].path
    if graph.phase[node] != Phase.FORWARD:
        place = f"{place} ({Phase(int(graph.phase[node])).name.lower()})".strip()
    name = graph.name(node)
    if name and not graph.is_input(node):
        place = f"{place} = {name}".strip() if place else f"= {name}"
    return f"{line}  {place}" if place else line


def _reference(graph: Graph, array: int) -> str:
    node = int(graph.node[array])
    if len(graph.outputs_of(node)) == 1:
        return f"%{node}"
    return f"%{node}.{array - int(graph.output_start[node])}"


def to_dot(graph: Graph) -> str:
    """For Graphviz; modules are clusters. ``dot -Tsvg`` is slow beyond some hundred nodes."""
    lines = ["digraph {", "  node [shape=box, style=rounded]"]
    for node in range(graph.nodes):
        shape = ", shape=ellipse" if graph.is_input(node) else ""
        made = ", ".join(map(graph.describe, graph.outputs_of(node)))
        text = _quoted(f"{graph.label(node)}\n{made}".strip())
        lines.append(f"  n{node} [label={text}{shape}]")
    lines += _clusters(graph)
    for source, target in zip(graph.sources.tolist(), graph.targets.tolist(), strict=True):
        lines.append(f"  n{source} -> n{target}")
    return "\n".join([*lines, "}", ""])


def _clusters(graph: Graph) -> list[str]:
    nodes: dict[str, list[int]] = {}
    for node, scope in enumerate(graph.scope.tolist()):
        if graph.scopes[scope].path:
            nodes.setdefault(graph.scopes[scope].path, []).append(node)
    inside: dict[str, list[str]] = {"": []}
    kinds = {scope.path: scope.kind for scope in graph.scopes}
    for path in sorted(nodes):
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            inner, outer = ".".join(parts[:end]), ".".join(parts[: end - 1])
            if inner not in inside:
                inside[inner] = []
                inside[outer].append(inner)
    lines: list[str] = []
    stack = [(path, False) for path in reversed(inside[""])]
    number = 0
    while stack:
        path, done = stack.pop()
        if done:
            lines.append("  }")
            continue
        title = f"{path} {kinds.get(path, '')}".strip()
        members = " ".join(f"n{node};" for node in nodes.get(path, []))
        lines.append(f"  subgraph cluster_{number} {{ label={_quoted(title)}; {members}")
        number += 1
        stack.append((path, True))
        stack += [(inner, False) for inner in reversed(inside[path])]
    return lines


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def to_networkx(graph: Graph) -> Any:
    """A ``networkx.MultiDiGraph``: nodes are numbers, attributes those of `attributes`.

    Edges have ``array`` (its number), ``position`` (among the inputs), ``dtype`` and ``shape``.

    Raises
    ------
    UsageError
        networkx is not installed.
    """
    networkx = _imported("networkx")
    result = networkx.MultiDiGraph(title=graph.title)
    result.add_nodes_from((node, attributes(graph, node)) for node in range(graph.nodes))
    result.add_edges_from(_edges(graph))
    return result


def to_rustworkx(graph: Graph) -> Any:
    """A ``rustworkx.PyDiGraph``; indices are node numbers, weights dicts as of `to_networkx`.

    Raises
    ------
    UsageError
        rustworkx is not installed.
    """
    rustworkx = _imported("rustworkx")
    result = rustworkx.PyDiGraph(attrs={"title": graph.title})
    result.add_nodes_from([attributes(graph, node) for node in range(graph.nodes)])
    result.add_edges_from(_edges(graph))
    return result


def attributes(graph: Graph, node: int) -> dict[str, object]:
    """What other tools are told of a node, in plain Python values."""
    made = graph.outputs_of(node)
    return {
        "label": graph.label(node),
        "primitive": graph.primitive_name(node),
        "arguments": graph.arguments_text(node),
        "module": graph.scopes[int(graph.scope[node])].path,
        "phase": Phase(int(graph.phase[node])).name.lower(),
        "name": graph.name(node),
        "device": "gpu" if graph.device[node] else "cpu",
        "stream": int(graph.stream[node]),
        "dtypes": [graph.dtype_name(array) for array in made],
        "shapes": [graph.shape(array) if graph.complete else None for array in made],
        "nbytes": int(graph.nbytes[made.start : made.stop].sum()),
    }


def _edges(graph: Graph) -> list[tuple[int, int, dict[str, object]]]:
    position = np.arange(graph.edges) - np.repeat(
        graph.input_start[:-1], np.diff(graph.input_start)
    )
    return [
        (
            source,
            target,
            {
                "array": array,
                "position": place,
                "dtype": graph.dtype_name(array),
                "shape": graph.shape(array) if graph.complete else None,
            },
        )
        for source, target, array, place in zip(
            graph.sources.tolist(),
            graph.targets.tolist(),
            graph.inputs.tolist(),
            position.tolist(),
            strict=True,
        )
    ]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"{name} is not installed: type %pip install {name}") from None
