"""Rows and places within frames: a layered layout (Sugiyama et al. 1981) of all frames at once.

*Elements* are what stands in a frame: items, and open frames within it. Every step below works on
the elements of all frames together, so its loops run over rows, of which a frame has at most a
few hundred, and never over elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Indices

MOST_IN_ROW = 20  # elements that a row may have; more of them make further rows
GAP_X, GAP_Y = 18.0, 30.0
PADDING, TITLE_BAR = 14.0, 26.0

Places = NDArray[np.float64]


def layers(sources: Indices, targets: Indices, frame: Indices, key: Places) -> Indices:
    """The layer of each element in its frame: below all that it needs (longest path, by Kahn).

    Where elements need each other in a circle (a module that holds forward and backward nodes),
    the one with the lowest key comes first; what leads back to it points upwards. Elements that
    need nothing stand just above the first that needs them.

    Parameters
    ----------
    sources, targets : int32 [edges]
        Elements of the same frame.
    frame : int32 [elements]
    key : float64 [elements]
        About where they stand in an order of the graph.

    Returns
    -------
    int32 [elements]
    """
    count = len(frame)
    order = np.argsort(sources, kind="stable")
    after = targets[order]
    start = np.searchsorted(sources[order], np.arange(count + 1)).astype(np.int32)
    missing = np.bincount(targets, minlength=count)
    layer = np.zeros(count, np.int32)
    waiting = np.ones(count, np.bool_)
    ready = np.flatnonzero(missing == 0)
    by_key = np.lexsort((key, frame))
    while True:
        if not len(ready):
            by_key = by_key[waiting[by_key]]
            if not len(by_key):
                break
            ready = by_key[np.flatnonzero(np.diff(frame[by_key], prepend=-1))]
        waiting[ready] = False
        edges = _of(start, ready.astype(np.int32))
        reached = after[edges]
        above = np.repeat(layer[ready], start[ready + 1] - start[ready])
        open_ = waiting[reached]
        reached, above = reached[open_], above[open_]
        np.maximum.at(layer, reached, above + 1)
        np.subtract.at(missing, reached, 1)
        ready = np.unique(reached[missing[reached] == 0])
    return _sunk(layer, sources, targets)


def _sunk(layer: Indices, sources: Indices, targets: Indices) -> Indices:
    """Layers, where chains that begin with what needs nothing stand just above what needs them."""
    count = len(layer)
    needs, needed = (np.bincount(ends, minlength=count) for ends in (targets, sources))
    before = np.full(count, -1, np.int32)
    before[targets] = sources
    downward = layer[targets] > layer[sources]
    sources, targets = sources[downward], targets[downward]
    by_layer = np.argsort(layer, kind="stable")
    levels = np.split(by_layer, np.flatnonzero(np.diff(layer[by_layer])) + 1)
    chain = needs == 0
    for level in levels[1:]:
        single = level[needs[level] == 1]
        chain[single] = chain[before[single]] & (needed[before[single]] == 1)
    by_source = np.argsort(sources, kind="stable")
    start = np.searchsorted(sources[by_source], np.arange(count + 1)).astype(np.int32)
    after = targets[by_source]
    layer = layer.copy()
    for level in reversed(levels):
        sinking = level[chain[level] & (start[level + 1] > start[level])].astype(np.int32)
        if len(sinking):
            lengths = start[sinking + 1] - start[sinking]
            below = layer[after[_of(start, sinking)]]
            lowest = np.minimum.reduceat(below, np.cumsum(lengths) - lengths)
            layer[sinking] = np.maximum(lowest - 1, layer[sinking])
    return layer


def _of(start: Indices, elements: Indices) -> Indices:
    """The positions of all values of these segments."""
    lengths = start[elements + 1] - start[elements]
    first = np.repeat(start[elements] - np.cumsum(lengths) + lengths, lengths)
    return np.asarray(first + np.arange(int(lengths.sum())), np.int32)


def rows(layer: Indices, frame: Indices, key: Places) -> Indices:
    """The row of each element in its frame: its layer, with long layers broken. int32 [elements]"""
    order = np.lexsort((key, layer, frame))
    new_frame = np.diff(frame[order], prepend=-1) != 0
    new_layer = new_frame | (np.diff(layer[order], prepend=-1) != 0)
    index = np.arange(len(order))
    within = index - np.maximum.accumulate(np.where(new_layer, index, 0))
    step = np.cumsum(new_layer | (within % MOST_IN_ROW == 0))
    base = np.maximum.accumulate(np.where(new_frame, step, 0))
    row = np.empty(len(order), np.int32)
    row[order] = step - base
    return row


@dataclass
class Placement:
    """Where elements stand in their frames.

    Attributes
    ----------
    x, y, width, height : float64 [elements]
        From the left upper corner of the frame. Sizes of frames are found from what is in them.
    """

    x: Places
    y: Places
    width: Places
    height: Places


def place(
    placement: Placement,
    elements: Indices,
    slot: Indices,
    frames: int,
    row: Indices,
    sources: Indices,
    targets: Indices,
) -> tuple[Places, Places]:
    """Place elements of frames whose inner frames have their sizes already.

    Parameters
    ----------
    placement
        Is filled in for these elements.
    elements : int32 [placed]
    slot : int32 [placed]
        The frame that each is in, from 0.
    frames
        How many frames.
    row : int32 [elements of the whole view]
    sources, targets : int32 [edges]
        Elements, from upper to lower rows of the same frame.

    Returns
    -------
    width, height : float64 [frames]
        What the frames need, with their title bars.
    """
    height = _stack(placement, elements, slot, frames, row)
    order = np.lexsort((elements, slot, row[elements]))
    elements, slot = elements[order], slot[order]
    row_start = np.searchsorted(row[elements], np.arange(int(row[elements].max()) + 2))
    centre = np.zeros(len(row), np.float64)
    where = np.empty(len(row), np.int64)
    where[elements] = slot
    down = _grouped(targets, sources, row)
    up = _grouped(sources, targets, row)
    last = len(row_start) - 1
    # Downwards by what they need, upwards by who needs them, downwards again.
    for towards, sweep in ((down, range(last)), (up, range(last - 1, -1, -1)), (down, range(last))):
        for each in sweep:
            members = elements[row_start[each] : row_start[each + 1]]
            wanted = _wanted(members, towards, each, centre)
            centre[members] = _pack(members, where[members], wanted, placement.width)
    left = np.full(frames, np.inf)
    right = np.full(frames, -np.inf)
    half = placement.width[elements] / 2
    np.minimum.at(left, slot, centre[elements] - half)
    np.maximum.at(right, slot, centre[elements] + half)
    placement.x[elements] = centre[elements] - half - left[slot] + PADDING
    return right - left + 2 * PADDING, height


def _stack(
    placement: Placement, elements: Indices, slot: Indices, frames: int, row: Indices
) -> Places:
    """Put rows below each other; returns the heights of the frames."""
    most = int(row[elements].max()) + 1
    keys, inverse = np.unique(slot.astype(np.int64) * most + row[elements], return_inverse=True)
    tall = np.zeros(len(keys), np.float64)
    np.maximum.at(tall, inverse, placement.height[elements])
    ends = np.cumsum(tall + GAP_Y)
    starts = ends - tall - GAP_Y
    frame_of = keys // most
    first = np.searchsorted(frame_of, np.arange(frames))
    final = np.searchsorted(frame_of, np.arange(frames), side="right") - 1
    base = starts[first]
    middle = (tall[inverse] - placement.height[elements]) / 2
    offset = starts[inverse] - base[slot] + middle
    placement.y[elements] = offset + TITLE_BAR + PADDING
    return np.asarray(ends[final] - base - GAP_Y + TITLE_BAR + 2 * PADDING, np.float64)


def _grouped(of: Indices, other: Indices, row: Indices) -> tuple[Indices, Indices, Indices]:
    """Edges by the row of one end: where each row's begin, that end, and the other one."""
    order = np.argsort(row[of], kind="stable")
    most = int(row.max()) + 2
    start = np.searchsorted(row[of[order]], np.arange(most)).astype(np.int32)
    return start, of[order], other[order]


def _wanted(
    members: Indices, towards: tuple[Indices, Indices, Indices], row: int, centre: Places
) -> Places:
    """Where the elements of a row would stand in the middle of those they hang together with."""
    start, of, other = towards
    edges = slice(int(start[row]), int(start[row + 1]))
    ends, inverse = np.unique(of[edges], return_inverse=True)
    wanted = centre[members]
    if len(ends):
        mean = np.bincount(inverse, weights=centre[other[edges]]) / np.bincount(inverse)
        sort = np.argsort(members)
        wanted[sort[np.searchsorted(members[sort], ends)]] = mean
    return wanted


def _pack(members: Indices, frame: NDArray[np.int64], wanted: Places, width: Places) -> Places:
    """Centres near the wanted ones, in their order, without overlaps within a frame."""
    order = np.lexsort((wanted, frame))
    frame, wide = frame[order], width[members[order]] + GAP_X
    before = np.cumsum(wide) - wide
    new = np.diff(frame, prepend=-1) != 0
    run = np.cumsum(new) - 1
    offset = before - before[new][run]
    left = wanted[order] - wide / 2
    # The running maximum pushes to the right whatever overlaps; frames are kept apart by `far`.
    far = run * (2.0 * float(np.abs(left).max() + offset.max()) + 1.0)
    placed = np.maximum.accumulate(left - offset + far) - far + offset
    drift = np.bincount(run, weights=placed - left) / np.bincount(run)
    result = np.empty(len(order), np.float64)
    result[order] = placed - drift[run] + wide / 2
    return result
