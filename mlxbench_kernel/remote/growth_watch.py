"""Sees whether the memory of ranks grows step after step, and finds out what is behind it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mlxbench_kernel.memory import Growth, Holdings, causes, find_growth, format_bytes
from mlxbench_kernel.memory.record import COLUMNS, Samples
from mlxbench_kernel.remote.memory_feed import MemoryFeed, Seen

LOOK_SECONDS = 2.0  # from one decision to the next
SAMPLES = 600  # of the last ones
LATER = 0.2  # of the growth, by which it has grown again when its cause is looked for
STEP, CELL, ACTIVE = (COLUMNS.index(name) for name in ("step", "cell", "active"))


@dataclass(frozen=True)
class Reported:
    """Growth of one rank.

    Attributes
    ----------
    growth
        How much.
    said
        In words, with what is behind it; "" as long as that is not known, and where it is what a
        stepper keeps: that has a budget.
    before
        What held memory when it was found; None once the cause was looked for.
    """

    growth: Growth
    said: str
    before: Holdings | None


class GrowthWatch:
    """Decides every few seconds, on a thread of its own, until it is closed.

    Parameters
    ----------
    feed
        The samples.
    look
        What holds the memory of a rank now.

    Attributes
    ----------
    reported : dict
        `Reported` by rank, for those that grow or grew.
    """

    def __init__(self, feed: MemoryFeed, look: Callable[[int], Holdings]) -> None:
        self.reported: dict[int, Reported] = {}
        self._feed, self._look = feed, look
        self._of: dict[int, tuple[str, float]] = {}  # what each rank was at when it was reported
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="mlxbench-growth", daemon=True).start()

    def close(self) -> None:
        """Decide no more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECONDS) and not self._feed.closed:
            for seen in list(self._feed.ranks):
                with suppress(Exception):  # a rank that is gone meanwhile
                    self.decide(seen)

    def decide(self, seen: Seen) -> None:
        """Look at the last samples of a rank."""
        _, rows = seen.ring.since(seen.ring.taken - SAMPLES)
        doing, steps, active = series(rows)
        known = self.reported.get(seen.rank)
        if known is not None and self._of[seen.rank] != doing:
            # It does something else now. What was found out stays until that grows too.
            if known.before is not None:
                del self.reported[seen.rank]
            known = None
        growth = find_growth(steps, active)
        if growth is None:
            return
        if known is None:
            self._of[seen.rank] = doing
            before = self._look(seen.rank)
            self.reported[seen.rank] = Reported(growth, "", before)
        elif known.before is not None:
            if active[-1] - known.before.active < LATER * known.growth.bytes:
                return
            now = self._look(seen.rank)
            said = "" if _is_kept(known.before, now) else _said(seen, doing, growth)
            if said:
                behind = causes(known.before, now)
                what = "; ".join(each.said for each in behind) or "no variable was found behind it"
                said += f": {what}"
            self.reported[seen.rank] = Reported(growth, said, None)


def series(rows: Samples) -> tuple[tuple[str, float], list[int], list[int]]:
    """What the last samples are of, and active memory by step of it.

    Returns
    -------
    doing
        ``("steps", 0)`` of a stepper, ``("cell", its number)`` where a cell runs, or
        ``("cells", 0)``.
    steps, active
        As `find_growth` takes them; within a cell a step is a tenth of a second, or from one
        sample to the next.
    """
    last = rows[-1] if len(rows) else np.full(len(COLUMNS), math.nan)
    if not math.isnan(last[STEP]) and math.isnan(last[CELL]):
        steps = rows[:, STEP]
        back = np.flatnonzero(~(np.diff(steps) >= 0))  # it was gone back, or there was none
        rows = rows[back[-1] + 1 :] if len(back) else rows
        return ("steps", 0.0), rows[:, STEP].astype(int).tolist(), _whole(rows)
    if not math.isnan(last[CELL]):
        rows = rows[rows[:, CELL] == last[CELL]]
        return ("cell", float(last[CELL])), list(range(len(rows))), _whole(rows)
    # Between cells: the last sample after each of them.
    rows = rows[~np.isnan(rows[:, CELL])]
    ends = np.flatnonzero(np.diff(rows[:, CELL], append=math.nan) != 0)
    return ("cells", 0.0), list(range(len(ends))), _whole(rows[ends])


def _is_kept(before: Holdings, now: Holdings) -> bool:
    """Whether most of a growth is states that a stepper keeps."""
    more = now.by_kind().get("snapshots", 0) - before.by_kind().get("snapshots", 0)
    return more > (now.active - before.active) / 2


def _whole(rows: Samples) -> list[int]:
    return [int(each) for each in rows[:, ACTIVE]]


def _said(seen: Seen, doing: tuple[str, float], growth: Growth) -> str:
    size = format_bytes(growth.bytes)
    if doing[0] == "steps":
        each = f"{format_bytes(growth.per_step)} with each step"
        return f"rank {seen.rank} grows by {each} ({size} from step {growth.first} on)"
    if doing[0] == "cell":
        return f"rank {seen.rank} grows while its cell runs, by {size} so far"
    return f"rank {seen.rank} grows with each cell, by {format_bytes(growth.per_step)}"
