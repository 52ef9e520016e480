"""Sees whether the memory of ranks grows step after step, and finds out what is behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mlxbench_kernel.memory import Growth, Holdings, causes, find_growth, format_bytes
from mlxbench_kernel.remote.growth_series import GrowthSeries, Series
from mlxbench_kernel.remote.memory_feed import MemoryFeed, Seen

LOOK_SECONDS = 2.0  # from one decision to the next
LATER = 0.2  # of the growth, by which it has grown again when its cause is looked for
# Cells are fewer than steps, and each may leave something that is wanted: a thousandth of what is
# active in each of ten is more than a few names.
CELLS, CELL_SHARE = 10, 1.0
WITHIN = "grows while its cell runs"


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

    def said_now(self, running: bool) -> str:
        """`said`, where what grew in a cell may be over.

        Parameters
        ----------
        running
            Whether a cell of the rank runs.
        """
        if running:
            return self.said
        return self.said.replace(WITHIN, "grew while its cell ran").replace(
            " so far", " when it was found"
        )


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
        self._ranks: dict[int, _Rank] = {}
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
        """Look at what is new of a rank."""
        rank = self._ranks.get(seen.rank)
        if rank is None or rank.record != seen.record:  # what was before is of another process
            first = 0 if rank is None else seen.ring.taken
            self.reported.pop(seen.rank, None)
            rank = self._ranks[seen.rank] = _Rank(seen.record, GrowthSeries(first), {})
        for series in rank.series.read(seen):
            decided = self._decide(seen, rank, series)
            if decided is not None:
                rank.found[series.kind] = series.number, decided
                shown = self.reported.get(seen.rank)
                if decided.said or shown is None or not shown.said:
                    self.reported[seen.rank] = decided

    def _decide(self, seen: Seen, rank: _Rank, series: Series) -> Reported | None:
        """What is new of a growth; None if nothing is."""
        number, known = rank.found.get(series.kind, (series.number, None))
        if number != series.number:
            known = None
        of_steps = rank.found.get("steps")
        if series.kind == "cells" and of_steps is not None and of_steps[1].said:
            return None  # steps are taken between cells too
        if series.kind == "cells":
            growth = find_growth(series.steps, series.active, least=CELLS, share=CELL_SHARE)
        else:
            growth = find_growth(series.steps, series.active)
        if growth is None:
            return None
        if known is None:
            return Reported(growth, "", self._look(seen.rank))
        if (
            known.before is None
            or series.active[-1] - known.before.active < LATER * known.growth.bytes
        ):
            return None
        now = self._look(seen.rank)
        said = "" if _is_kept(known.before, now) else _said(seen.rank, series.kind, growth)
        if said:
            behind = causes(known.before, now)
            what = "; ".join(each.said for each in behind) or "no variable was found behind it"
            said += f": {what}"
        return Reported(growth, said, None)


@dataclass
class _Rank:
    """One process: its series, and by kind the number of the one that grows and what is known."""

    record: str
    series: GrowthSeries
    found: dict[str, tuple[int, Reported]]


def _is_kept(before: Holdings, now: Holdings) -> bool:
    """Whether most of a growth is states that a stepper keeps."""
    more = now.by_kind().get("snapshots", 0) - before.by_kind().get("snapshots", 0)
    return more > (now.active - before.active) / 2


def _said(rank: int, kind: str, growth: Growth) -> str:
    size = format_bytes(growth.bytes)
    if kind == "steps":
        each = f"{format_bytes(growth.per_step)} with each step"
        return f"rank {rank} grows by {each} ({size} from step {growth.first} on)"
    if kind == "cell":
        return f"rank {rank} {WITHIN}, by {size} so far"
    return f"rank {rank} grows with each cell, by {format_bytes(growth.per_step)}"
