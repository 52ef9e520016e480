"""How often what costs a pass over all parameters is measured: so that it stays under 1 %."""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np
from numpy.typing import NDArray

SHARE = 0.0015  # of the time of training that measuring may take
FIRST = 4  # steps from one measured step to the next, before it is known what that costs
MOST = 400


class Sampling:
    """Decides at which steps to measure, the same ones on all ranks.

    Attributes
    ----------
    interval : int
        Steps from one measured step to the next.
    """

    def __init__(self) -> None:
        self.interval = FIRST
        self._since = self._noted = 0
        self._begin()

    def _begin(self) -> None:
        self._seconds: dict[bool, deque[float]] = {
            False: deque(maxlen=21),
            True: deque(maxlen=15),
        }
        self._first = {False: 1, True: 2}  # those that may have been compiled

    def standing(self) -> list[float]:
        """Numbers that are the same where the same was noted: for `agree` on all ranks."""
        return [self.interval, self._since, self._noted]

    def agree(self, rows: NDArray[np.float64]) -> None:
        """See that all ranks measure at the same steps, as after a fault they might not.

        Parameters
        ----------
        rows
            What `standing` gave on each rank: float64 [ranks, 3].
        """
        if (rows != rows[0]).any():
            self.interval, self._since, self._noted = (int(most) for most in rows.max(axis=0))
            self._begin()

    def due(self) -> bool:
        """Whether the next step is one; it counts as taken."""
        found = self.is_next
        self._since = 0 if found else self._since + 1
        return found

    @property
    def is_next(self) -> bool:
        """Whether the next step is one, as far as is known now."""
        return self._since + 1 >= self.interval

    def note(self, plain: float, full: float) -> None:
        """Steps of either kind took so many seconds on the slowest rank; 0 where none was."""
        self._noted += 1
        for measured, seconds in ((False, plain), (True, full)):
            if seconds and self._first[measured]:
                self._first[measured] -= 1
            elif seconds:
                self._seconds[measured].append(seconds)
        others, own = self._seconds[False], self._seconds[True]
        if full and len(others) >= 5 and len(own) >= 3:
            share = max(median(own) / median(others) - 1, 0.0)
            wanted = min(max(FIRST, round(share / SHARE)), MOST)
            self.interval = min(wanted, 2 * self.interval)  # one slow step is no reason
