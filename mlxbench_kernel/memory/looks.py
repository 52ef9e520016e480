"""What held the memory after each of the last cells, so that one can ask what grew since then.

Looking takes time, a few milliseconds for hundreds of arrays: it is done after a cell when that
was long enough for it not to matter, and only once somebody has asked about memory at all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxbench_kernel.memory.attribution import attribute
from mlxbench_kernel.memory.holdings import Holdings
from mlxbench_kernel.memory.record import Mark, Record

NODES = 200_000  # of all that is kept together
QUICK = 0.01  # seconds that a look may always take
SHARE = 0.02  # of the cell that it may take


@dataclass(frozen=True)
class Look:
    """What held memory at a moment.

    Attributes
    ----------
    name
        Of the cell after which it was.
    time
        Unix time.
    holdings
        From `attribute`.
    """

    name: str
    time: float
    holdings: Holdings


class Looks:
    """The last ones, oldest first.

    Parameters
    ----------
    namespace, hidden
        As for `attribute`.
    record
        Of the cells.
    """

    def __init__(
        self, namespace: Mapping[str, Any], hidden: Mapping[str, Any], record: Record
    ) -> None:
        self._namespace, self._hidden, self._record = namespace, hidden, record
        self._kept: deque[Look] = deque()
        self._took = 0.0  # by the last look
        self._seen = -1  # number of the mark of the cell after which the last one was

    def after_cell(self) -> None:
        """Look, if that is worth it; in the thread that runs cells, which is idle."""
        cell = self._record.last_cell
        if cell is None or not self._record.is_asked or cell.number == self._seen:
            return
        self._seen = cell.number
        if self._took <= max(QUICK, SHARE * (cell.end - cell.begin)):
            self.look(cell)
        else:
            self._took *= 0.9  # what was deleted meanwhile is not known

    def look(self, cell: Mark) -> None:
        """Keep what holds memory now."""
        began = time.perf_counter()
        found = attribute(self._namespace, self._hidden)
        self._took = time.perf_counter() - began
        self._kept.append(Look(cell.name, time.time(), found))
        while len(self._kept) > 1 and sum(len(each.holdings.labels) for each in self._kept) > NODES:
            self._kept.popleft()

    def names(self) -> list[tuple[str, float]]:
        """After which cells, and when."""
        return [(each.name, each.time) for each in list(self._kept)]

    def find(self, name: str) -> dict[str, Any] | None:
        """The last look after a cell of this name, as a dict of `Holdings`; None without one."""
        for each in reversed(list(self._kept)):
            if each.name == name:
                return each.holdings.to_dict()
        return None
