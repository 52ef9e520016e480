"""Samples that a process sends without being asked for each: a question costs it several samples.

Whoever asks (`Record.tell`) can have the samples of the next seconds sent, and asks again before
these are over: so a notebook that is gone costs nothing. What is sent may be lost. Samples are
numbered and marks have a version, so that the other side sees a gap, and asks.
"""

from __future__ import annotations

import base64
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Seconds for which samples that say nothing new may wait for others: a message costs as much as
# a sample.
HOLD_SECONDS = 0.4
NEW = 0.005  # of what a process holds, by which a figure has to change for it to be sent at once

Send = Callable[[dict[str, Any]], None]


class Pushing:
    """What of one process's samples is to be sent.

    Parameters
    ----------
    columns
        How many numbers a sample has.
    watched
        The places of those numbers, in bytes, whose change is sent at once.

    Attributes
    ----------
    send : function or None
        Sends one message, on the thread that takes samples; None where nobody can.
    """

    def __init__(self, columns: int, watched: Sequence[int]) -> None:
        self.send: Send | None = None
        self._pack = struct.Struct(f"<{columns}d").pack
        self._watched = tuple(watched)
        self._until = 0.0
        self._rows: list[bytes] = []
        self._shown: Sequence[float] = ()  # the last sample that was sent
        self._at = 0.0
        self._version = 0
        self._marks: dict[int, list[Any]] = {}

    def ask(self, seconds: float, version: int) -> bool:
        """Send for so many seconds from now on; whether that can be done."""
        if self.send is None or seconds <= 0:
            return False
        if not self.goes_on:
            self._begin(version)
        self._until = max(self._until, time.monotonic() + seconds)
        return True

    @property
    def goes_on(self) -> bool:
        """Whether somebody has asked for it."""
        return time.monotonic() < self._until

    def _begin(self, version: int) -> None:
        self._rows, self._marks, self._version = [], {}, version
        self._shown, self._at = (), 0.0

    def mark(self, number: int, mark: list[Any]) -> None:
        """A mark, as the fields of `record.Mark`, has begun or ended."""
        if self.goes_on:
            self._marks[number] = mark

    def take(
        self, row: Sequence[float], following: int, version: int, about: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Take a sample in.

        Parameters
        ----------
        row
            The sample.
        following
            The number of the one after it.
        version
            Of the marks.
        about
            What else the message tells.

        Returns
        -------
        dict or None
            What is to be sent now: ``next``; ``samples``, as `record.encode` has them; the
            ``marks`` that changed from version ``was`` to ``version``; and `about`.
        """
        if not self.goes_on:
            return None
        self._rows.append(self._pack(*row))
        now = time.monotonic()
        # A period is not met to the millisecond.
        if now - self._at < HOLD_SECONDS - 0.03 and not self._marks and not self._is_new(row):
            return None
        message = {
            **about,
            "next": following,
            "samples": base64.b64encode(b"".join(self._rows)).decode(),
            "was": self._version,
            "version": version,
            "marks": list(self._marks.values()),
        }
        self._begin(version)
        self._shown, self._at = row, now
        return message

    def _is_new(self, row: Sequence[float]) -> bool:
        if not self._shown:
            return True
        much = NEW * max(abs(row[place]) for place in self._watched)
        return any(
            not math.isclose(row[place], self._shown[place], rel_tol=0.0, abs_tol=much)
            for place in self._watched
        )
