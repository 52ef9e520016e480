"""After which steps of a run states are kept: as few as going back and pauses allow.

What is kept the next step cannot write over, so it writes to other memory, which is not in the
caches of a CPU; and keeping takes some of Python's time. So of short steps few are kept: those
between are taken again in no time. Before a pause some more steps are taken, all of which are kept,
to go back from there at once.
"""

from __future__ import annotations

import math

SECONDS = 0.2  # of steps from one kept state to the next
SHORT = 0.03  # seconds of a step, above which each is kept; so long may steps before a pause take
MOST = 64  # steps from one kept state to the next
RECENT = 8  # last steps of a run of so many are all kept
MORE = 2  # steps before a pause


class Keeping:
    """Decides it, on all ranks alike.

    Attributes
    ----------
    every : int
        Steps of which one is kept.
    end : float
        The step at which the run ends, as far as is known: the last ones before are all kept.
    """

    def __init__(self) -> None:
        self.begin(math.inf)

    def begin(self, end: float) -> None:
        """A run to a step begins."""
        self.every, self.end = 1, end
        self._passed = 0
        self._more = 0

    def note(self, seconds: float) -> None:
        """Take note how long a step took on the slowest rank."""
        self.every = max(1, min(int(SECONDS / seconds), MOST)) if seconds <= SHORT else 1
        self._more = min(self.every - 1, MORE, int(SHORT / seconds))

    def end_soon(self, step: int) -> None:
        """The run is to pause: after this step, or some more that are kept."""
        self.end = min(self.end, step + self._more)

    def due(self, step: int) -> bool:
        """Whether the state after a step is kept; asked once for each."""
        self._passed += 1
        if self._passed < self.every and step <= self.end - RECENT:
            return False
        self._passed = 0
        return True
