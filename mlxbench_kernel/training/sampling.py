"""How often what costs a pass over all parameters is measured: so that it stays under 1 %."""

from __future__ import annotations

from collections import deque
from statistics import median

SHARE = 0.0025  # of the time of training that measuring may take
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
        self._since = 0
        self._seconds: dict[bool, deque[float]] = {
            False: deque(maxlen=21),
            True: deque(maxlen=15),
        }
        self._first = {False: 1, True: 2}  # those that may have been compiled

    def due(self) -> bool:
        """Whether the next step is one."""
        self._since += 1
        if self._since >= self.interval:
            self._since = 0
            return True
        return False

    def note(self, plain: float, full: float) -> None:
        """Steps of either kind took so many seconds on the slowest rank; 0 where none was."""
        for measured, seconds in ((False, plain), (True, full)):
            if seconds and self._first[measured]:
                self._first[measured] -= 1
            elif seconds:
                self._seconds[measured].append(seconds)
        others, own = self._seconds[False], self._seconds[True]
        if len(others) >= 5 and len(own) >= 3:
            share = max(median(own) / median(others) - 1, 0.0)
            wanted = min(max(FIRST, round(share / SHARE)), MOST)
            self.interval = min(wanted, 2 * self.interval)  # one slow step is no reason
