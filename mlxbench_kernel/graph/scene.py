"""What a view draws: boxes and lines of the groups that are open, with everything in place."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Kind(IntEnum):
    """What a box stands for."""

    NODE = 0
    INPUT = 1  # nothing computes it, or it is evaluated already
    COLLECTIVE = 2
    GROUP = 3  # closed
    FRAME = 4  # an open group, around what is in it


@dataclass(frozen=True)
class Scene:
    """Boxes and lines, in the order in which they are drawn: frames first.

    Attributes
    ----------
    item : int32 [boxes]
        The node's number in the graph; for a group -1 - its number in the hierarchy.
    kind : uint8 [boxes]
        A `Kind`.
    x, y, width, height : float32 [boxes]
        Left upper corner and size; y grows downwards, in units of a screen's pixel at zoom 1.
    swatch : uint8 [boxes]
        Index of its colour in the palette that `palette` names.
    frame : int32 [boxes]
        The box of the frame that it stands in; -1 outside all of them.
    source, target : int32 [lines]
        Boxes that a line joins, from what is needed to what needs it.
    stub : uint8 [lines]
        1 for a long line, of which only the ends are drawn until it is looked at.
    title, note : tuple of str
        First and second line on each box.
    palette
        "categorical" (12 colours) or "sequential" (16, from little to much).
    legend : tuple of (str, int)
        What swatches mean.
    """

    item: NDArray[np.int32]
    kind: NDArray[np.uint8]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    width: NDArray[np.float32]
    height: NDArray[np.float32]
    swatch: NDArray[np.uint8]
    frame: NDArray[np.int32]
    source: NDArray[np.int32]
    target: NDArray[np.int32]
    stub: NDArray[np.uint8]
    title: tuple[str, ...]
    note: tuple[str, ...]
    palette: str = "categorical"
    legend: tuple[tuple[str, int], ...] = ()

    @property
    def boxes(self) -> int:
        """How many boxes there are."""
        return len(self.item)
