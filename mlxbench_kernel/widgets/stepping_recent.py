"""The last steps of each rank: how fast they were, and where their time went."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.training import History

LAST = 50
PARTS = ("data", "compute", "collective")


class Recent:
    """Reads what is new of histories, and keeps the last steps of each.

    Parameters
    ----------
    histories
        By rank.
    """

    def __init__(self, histories: Sequence[History]) -> None:
        self._histories = histories
        self._cursors = [max(history.end - LAST, 0) for history in histories]
        self._rows: list[deque[tuple[str, Mapping[str, float]]]] = [
            deque(maxlen=LAST) for _ in histories
        ]

    def read(self) -> set[str]:
        """The branches that have new steps."""
        touched: set[str] = set()
        for rank, history in enumerate(self._histories):
            while True:
                cursor, rows = history.since(self._cursors[rank])
                if not rows:
                    break
                self._cursors[rank] = cursor
                self._rows[rank].extend(rows[-LAST:])
                touched.update(branch for branch, _ in rows)
        return touched

    def mean(self, rank: int, name: str, branch: str, step: int) -> float:
        """The mean of a measure over the last steps of a branch up to `step`; NaN if none."""
        values = [row[name] for row in self._of(rank, name, branch, step)]
        return float(np.mean(values)) if values else float("nan")

    def rate(self, rank: int, name: str, branch: str, step: int) -> float:
        """As `mean`, of what is per second: of all that time, so that long steps count as long."""
        rows = self._of(rank, name, branch, step)
        seconds = sum(row["seconds"] for row in rows)
        return sum(row[name] * row["seconds"] for row in rows) / seconds if rows else float("nan")

    def _of(self, rank: int, name: str, branch: str, step: int) -> list[Mapping[str, float]]:
        return [
            row
            for of, row in self._rows[rank]
            if of == branch and row["step"] <= step and name in row
        ]

    def parts(self, branch: str, step: int) -> NDArray[np.float64]:
        """Milliseconds of a step in its parts, float64 [parts, ranks]; NaN if not measured."""
        ranks = range(len(self._histories))
        return np.array(
            [
                [1000 * self.mean(rank, f"{part}_seconds", branch, step) for rank in ranks]
                for part in PARTS
            ]
        )
