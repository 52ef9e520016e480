"""Until when a rank stays: as long as what it belongs to, and not for ever after that.

The silence of the controller alone ends no rank soon: a controller can be brought back, and a
network mends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def alive(pid: int, started: float) -> bool:
    """Whether the process `pid` that was started at `started` (Unix time) still runs."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Lifetime:
    """Says when a rank has nobody left.

    Parameters
    ----------
    owner, owner_started
        Process on this host that the rank belongs to (the notebook's kernel) and when that was
        started (Unix time); 0 where there is none.
    silence
        Seconds without a sign of any controller after which a rank without such a process is
        alone. Time that the host sleeps does not count.
    clock
        Seconds, as `time.monotonic`.
    """

    def __init__(
        self,
        owner: int,
        owner_started: float,
        silence: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owner = owner
        self._owner_started = owner_started
        self._silence = silence
        self._clock = clock
        self._heard = clock()

    def heard(self) -> None:
        """The controller gave a sign of life."""
        self._heard = self._clock()

    def over(self) -> str:
        """Why the rank is to leave; "" while it has to stay."""
        if self._owner:
            there = alive(self._owner, self._owner_started)
            return "" if there else "The notebook's kernel is gone: this rank leaves."
        silent = self._clock() - self._heard
        if silent < self._silence:
            return ""
        return f"No controller was heard of for {silent:.0f} s: this rank leaves."
