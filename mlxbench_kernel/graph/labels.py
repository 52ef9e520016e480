"""What is written on the boxes of a view, made once per different text."""

from __future__ import annotations

import numpy as np

from mlxbench_kernel.graph.hierarchy import Hierarchy, is_parameter
from mlxbench_kernel.graph.model import COLLECTIVES, Graph, Indices
from mlxbench_kernel.graph.structure import array_hashes

TITLE, NOTE = 34, 38  # letters that are shown


def item_labels(
    graph: Graph, hierarchy: Hierarchy, items: Indices
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """First and second lines for nodes (their number) and groups (-1 - number).

    A node's second line has its first output, and the parameter that only it takes.

    Parameters
    ----------
    items : int32 [items]
    """
    nodes = items[items >= 0]
    primitives = [COLLECTIVES.get(name, name) for name in graph.primitives]
    primitives[0] = "constant"
    titles = dict(
        zip(
            nodes.tolist(),
            (primitives[index] for index in graph.primitive[nodes].tolist()),
            strict=True,
        )
    )
    for node in graph.fused:
        if node in titles:
            titles[node] = "Compiled"
    notes = _describe(graph, nodes)
    for array, name in graph.names.items():
        node = int(graph.node[array])
        if node in titles:
            if graph.is_input(node):
                titles[node] = name
        elif is_parameter(name) and graph.is_input(node):
            users = graph.users_of(array)
            if len(users) == 1 and int(users[0]) in notes:
                user, short = int(users[0]), ".".join(name.split(".")[-2:])
                notes[user] = f"{notes[user]} · {short}" if notes[user] else short
    title, note = [], []
    for item in items.tolist():
        if item >= 0:
            title.append(_shortened(titles[item], TITLE))
            note.append(_shortened(notes[item], NOTE))
        else:
            group = -1 - item
            title.append(_shortened(hierarchy.title[group], TITLE))
            note.append(_shortened(group_note(hierarchy, group), NOTE))
    return tuple(title), tuple(note)


def group_note(hierarchy: Hierarchy, group: int) -> str:
    """A group in a few words: ``Attention · 120 nodes``."""
    count, kind = int(hierarchy.count[group]), hierarchy.kind[group]
    nodes = f"{count:,} node{'' if count == 1 else 's'}"
    own = kind and kind not in ("fold", "range", "optimizer")
    return f"{kind} · {nodes}" if own else nodes


def _describe(graph: Graph, nodes: Indices) -> dict[int, str]:
    if not len(nodes):
        return {}
    arrays = graph.output_start[nodes]
    hashes = array_hashes(graph)[arrays]
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    texts = [graph.describe(array) for array in arrays[first].tolist()]
    return dict(zip(nodes.tolist(), (texts[each] for each in inverse.tolist()), strict=True))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
