"""What a rank held by step of its stepper, by cell, and within a cell: where growth is looked for.

The samples of some minutes do not have it: cells may be minutes apart, and steps too. So what each
of them left is kept here, whatever time they took.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from mlxbench_kernel.memory.record import COLUMNS
from mlxbench_kernel.remote.memory_feed import Seen

MOST = 600  # steps, cells, or samples of a cell, the last ones
TIME, STEP, CELL, ACTIVE = (COLUMNS.index(name) for name in ("time", "step", "cell", "active"))


@dataclass(frozen=True)
class Series:
    """What was active, step by step.

    Attributes
    ----------
    kind
        ``"steps"`` of a stepper, ``"cells"``, or ``"cell"``: within one, where a step is from one
        sample to the next.
    number
        Tells it from others of its kind: of the cell, or how often a stepper was gone back.
    steps, active
        As `find_growth` takes them; of a stepper's step the least that was active in it, of a
        cell what was active after it.
    """

    kind: str
    number: int
    steps: list[int]
    active: list[int]


class GrowthSeries:
    """The series of one process, read from its samples and marks as they come.

    Parameters
    ----------
    first
        Number of the first sample in its ring that counts.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = self._read = first
        self._steps: deque[list[int]] = deque(maxlen=MOST)
        self._went_back = 0
        self._cells: deque[int] = deque(maxlen=MOST)
        self._cell = -1  # the last that is in it

    def read(self, seen: Seen) -> list[Series]:
        """The series that have become longer since the last call."""
        found = []
        if self._read_steps(seen):
            steps, active = zip(*self._steps, strict=True)
            found.append(Series("steps", self._went_back, list(steps), list(active)))
        if self._read_cells(seen):
            found.append(Series("cells", 0, list(range(len(self._cells))), list(self._cells)))
        _, rows = seen.ring.since(max(seen.ring.taken - MOST, self._first))
        if len(rows) and not math.isnan(rows[-1, CELL]):
            number = rows[-1, CELL]
            within = rows[rows[:, CELL] == number, ACTIVE].astype(int).tolist()
            found.append(Series("cell", int(number), list(range(len(within))), within))
        return found

    def _read_steps(self, seen: Seen) -> bool:
        """Whether a step was taken, outside of the user's cells."""
        taken = False
        self._read, rows = seen.ring.since(self._read)
        for step, cell, active in rows[:, [STEP, CELL, ACTIVE]].tolist():
            if math.isnan(step) or not math.isnan(cell):
                continue
            if self._steps and step < self._steps[-1][0]:  # gone back, or another stepper
                self._steps.clear()
                self._went_back += 1
            if self._steps and step == self._steps[-1][0]:
                self._steps[-1][1] = min(self._steps[-1][1], int(active))
            else:
                self._steps.append([int(step), int(active)])
                taken = True
        return taken

    def _read_cells(self, seen: Seen) -> bool:
        """Whether a cell has ended, and what was active then is known."""
        ended = [
            mark
            for mark in seen.marks
            if mark.kind == "cell"
            and not mark.lasts
            and mark.number > max(self._cell, seen.begun - 1)
        ]
        if not ended:
            return False
        taken, rows = seen.ring.since(self._first)
        begin, more = taken - len(rows), False
        for mark in ended:
            place = int(np.searchsorted(rows[:, TIME], mark.end))
            if place == len(rows):  # the sample after it is still to come
                break
            self._cell = mark.number
            if place == 0:  # it ended before anything was known
                continue
            if not math.isnan(rows[place, CELL]) and rows[place, CELL] != mark.number:
                place -= 1  # the next one had begun already
            self._cells.append(int(rows[place, ACTIVE]))
            self._first, more = begin + place, True
        return more
