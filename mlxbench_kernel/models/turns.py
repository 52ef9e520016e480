"""Turns of a thread that uses the ranks beside the one that runs cells."""

from __future__ import annotations

import threading

LOOK_SECONDS = 1.0


class Turns:
    """Lets one thread work only while another one waits for it.

    Two threads that both used a group would mix up its collectives, on each rank in another order.
    So the worker goes on only within a `turn`, which lasts until it rests of its own accord: at a
    place that is the same on all ranks.

    Attributes
    ----------
    error
        What has ended the worker; None where nothing has.
    over
        Whether it has ended.
    """

    def __init__(self) -> None:
        self._begun, self._resting = threading.Event(), threading.Event()
        self._resting.set()
        self._closed = False
        self.error: BaseException | None = None
        self.over = False

    # -- of the worker ---------------------------------------------------------------

    def rest(self) -> bool:
        """Wait until a turn begins; whether there is one: False where none will be any more."""
        self._resting.set()
        self._begun.wait()
        self._begun.clear()
        return not self._closed

    def end(self, error: BaseException | None = None) -> None:
        """The worker has ended, and why."""
        self.error, self.over = error, True
        self._resting.set()

    # -- of the thread that runs cells -----------------------------------------------

    def begin(self) -> None:
        """Let the worker go on."""
        if not self.over:
            self._resting.clear()
            self._begun.set()

    def has_rested(self, seconds: float = LOOK_SECONDS) -> bool:
        """Wait until the worker rests or has ended, for so long at most; whether it does."""
        return self._resting.wait(seconds)

    def close(self) -> None:
        """There will be no turn any more: a worker that rests comes back from `rest`."""
        self._closed = True
        self._begun.set()
