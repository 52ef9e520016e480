"""Where everything in a view stands: from open groups to a `Scene`, linear in what is seen."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.colours import Colour, colour_items
from mlxbench_kernel.graph.hierarchy import ROOT, Hierarchy, Visible
from mlxbench_kernel.graph.labels import item_labels
from mlxbench_kernel.graph.layering import Placement, Places, layers, place, rows
from mlxbench_kernel.graph.model import COLLECTIVES, Graph, Indices, Phase
from mlxbench_kernel.graph.scene import Kind, Scene

LONG = 6  # rows that a line may span, before it is drawn as a stub
HIGH, WIDE = 420.0, 1600.0  # pixels that it may go down and sideways
LETTER = 7.6  # pixels, of the 13 pixel font of the views
SMALLEST, WIDEST = 64.0, 260.0
TALL, LOW = 40.0, 26.0  # boxes with two lines and with one


def lay_out(
    graph: Graph,
    hierarchy: Hierarchy,
    opened: Collection[int],
    colour: Colour = "kind",
    unit: str = "",
) -> Scene:
    """Lay out what is seen while some groups are open.

    Parameters
    ----------
    graph, hierarchy
        The graph, and its groups.
    opened
        The open groups, by their numbers.
    colour, unit
        What colours show, see `colours.colour_items`.

    Raises
    ------
    UsageError
        There is no such colour.
    """
    seen = hierarchy.visible(opened)
    items, frames = seen.items, seen.frames[1:]
    sources, targets = _lines(graph, hierarchy, seen)
    # Elements: items first, then the frames inside the root.
    number_of_frame = np.full(len(hierarchy), -1, np.int32)
    number_of_frame[frames] = len(items) + np.arange(len(frames), dtype=np.int32)
    inside = number_of_frame[np.concatenate([seen.frame, hierarchy.parent[frames]])]
    title, note = item_labels(graph, hierarchy, np.concatenate([items, -1 - frames]))
    count = len(items) + len(frames)
    width, height, bar = _sizes(title, note, np.concatenate([items, -1 - frames]) < 0)
    placement = Placement(np.zeros(count), np.zeros(count), width, height)
    depth = np.concatenate([hierarchy.depth[seen.frame], hierarchy.depth[frames] - 1])
    upper, lower = _in_one_frame(sources, targets, inside, depth)
    key = _keys(graph, hierarchy, items, frames)
    # Gradients of a loss may need nothing of the model that they lead to; still they come after.
    node = np.maximum(items, 0)
    backward = np.zeros(count, np.bool_)
    backward[: len(items)] = (items >= 0) & (graph.phase[node] == Phase.BACKWARD)
    returning = backward[upper] & (key[upper] > key[lower])
    above, below = np.where(returning, (lower, upper), (upper, lower)).astype(np.int32)
    layer = layers(*_unique(above, below, count), inside + 1, key)
    row = rows(layer, inside + 1, key)
    forward = row[upper] < row[lower]
    _place_all(placement, bar, inside, depth, row, upper[forward], lower[forward])
    order = np.concatenate([np.arange(len(items), count), np.arange(len(items))])
    box = np.empty(count, np.int32)
    box[order] = np.arange(count)
    coloured = colour_items(
        graph, hierarchy, seen, colour, np.concatenate([items, -1 - frames]), unit
    )
    away = placement.y[targets] - placement.y[sources] - placement.height[sources] > HIGH
    away |= np.abs(placement.x[sources] - placement.x[targets]) > WIDE
    stub = away | ~forward | (row[lower] - row[upper] > LONG)
    return Scene(
        item=np.concatenate([-1 - frames, items]).astype(np.int32),
        kind=np.concatenate([np.full(len(frames), Kind.FRAME), _kinds(graph, items)]).astype(
            np.uint8
        ),
        x=placement.x[order].astype(np.float32),
        y=placement.y[order].astype(np.float32),
        width=placement.width[order].astype(np.float32),
        height=placement.height[order].astype(np.float32),
        swatch=coloured.swatch[order],
        frame=np.where(inside[order] >= 0, box[inside[order]], -1).astype(np.int32),
        source=box[sources],
        target=box[targets],
        stub=stub.astype(np.uint8),
        title=(*title[len(items) :], *title[: len(items)]),
        note=(*note[len(items) :], *note[: len(items)]),
        palette=coloured.palette,
        legend=coloured.legend,
    )


def _lines(graph: Graph, hierarchy: Hierarchy, seen: Visible) -> tuple[Indices, Indices]:
    """The different pairs of items with edges between them, as indices into the items."""
    groups = len(hierarchy)
    index = np.zeros(groups + graph.nodes, np.int32)
    index[seen.items + groups] = np.arange(len(seen.items), dtype=np.int32)
    number = index[seen.item_of + groups]
    sources, targets = number[graph.sources], number[graph.targets]
    different = sources != targets
    return _unique(sources[different], targets[different], len(seen.items))


def _unique(sources: Indices, targets: Indices, count: int) -> tuple[Indices, Indices]:
    # np.unique takes a hash table for integers, which is three times slower here.
    pairs = np.sort(sources.astype(np.int64) * count + targets)
    pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]
    return (pairs // count).astype(np.int32), (pairs % count).astype(np.int32)


def _in_one_frame(
    sources: Indices, targets: Indices, inside: Indices, depth: Indices
) -> tuple[Indices, Indices]:
    """For each line, the elements around its ends that stand in the same frame."""
    upper, lower = sources.copy(), targets.copy()
    for level in range(int(depth.max(initial=0)), -1, -1):
        # Ends of different depth go up alone, the others together until they meet.
        parted = inside[upper] != inside[lower]
        up = parted & (depth[upper] == level) & (depth[upper] >= depth[lower])
        down = parted & (depth[lower] == level) & (depth[lower] >= depth[upper])
        upper[up], lower[down] = inside[upper[up]], inside[lower[down]]
    return upper, lower


def _keys(graph: Graph, hierarchy: Hierarchy, items: Indices, frames: Indices) -> Places:
    """About where items and frames stand in the order of the graph: the mean of their nodes.

    Only forward nodes count where a group has any, so that modules stand in the order in which
    the user called them.
    """
    order = np.arange(graph.nodes, dtype=np.float64)
    weight = np.where(graph.phase == 0, 1.0, 1e-9) * np.where(graph.primitive == 0, 1e-3, 1.0)
    mean = hierarchy.total(order * weight) / hierarchy.total(weight)
    both = np.concatenate([items, -1 - frames])
    return np.where(both >= 0, both, mean[np.maximum(-1 - both, 0)])


def _sizes(
    title: tuple[str, ...], note: tuple[str, ...], group: NDArray[np.bool_]
) -> tuple[Places, Places, Places]:
    """Widths and heights of boxes, and the widths of their title bars were they open."""
    first = np.fromiter(map(len, title), np.float64, len(title))
    second = np.fromiter(map(len, note), np.float64, len(note))
    bold = np.where(group, first * 1.1 + 3.0, first)  # and a triangle before it
    width = np.clip(np.maximum(bold, second) * LETTER + 20.0, SMALLEST, WIDEST)
    return width, np.where(second > 0, TALL, LOW), (first + second) * LETTER + 24.0


def _kinds(graph: Graph, items: Indices) -> NDArray[np.uint8]:
    collective = np.array([name in COLLECTIVES for name in graph.primitives], np.bool_)
    node = np.maximum(items, 0)
    kind = np.full(len(items), Kind.NODE, np.uint8)
    if graph.nodes:
        kind[graph.primitive[node] == 0] = Kind.INPUT
        kind[collective[graph.primitive[node]]] = Kind.COLLECTIVE
    kind[items < 0] = Kind.GROUP
    return kind


def _place_all(
    placement: Placement,
    titles: Places,
    inside: Indices,
    depth: Indices,
    row: Indices,
    upper: Indices,
    lower: Indices,
) -> None:
    """Place the elements of the innermost frames first, which then are boxes for the outer."""
    levels = range(int(depth.max(initial=-1)), -1, -1)
    for level in levels:
        elements = np.flatnonzero(depth == level).astype(np.int32)
        frames, inverse = np.unique(inside[elements], return_inverse=True)
        slot = inverse.astype(np.int32)
        of_level = depth[upper] == level
        width, height = place(
            placement, elements, slot, len(frames), row, upper[of_level], lower[of_level]
        )
        if level > ROOT:
            spare = np.maximum(titles[frames] - width, 0.0)
            placement.x[elements] += spare[slot] / 2
            placement.width[frames] = width + spare
            placement.height[frames] = height
    for level in reversed(levels):
        elements = np.flatnonzero((depth == level) & (inside >= 0)).astype(np.int32)
        placement.x[elements] += placement.x[inside[elements]]
        placement.y[elements] += placement.y[inside[elements]]
