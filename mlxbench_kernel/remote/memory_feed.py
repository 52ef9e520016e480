"""What ranks tell of their memory, kept in the notebook: some times a second, whatever they do."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mlxbench_kernel.memory.pools import PoolKey
from mlxbench_kernel.memory.record import (
    ASKED_SECONDS,
    COLUMNS,
    MARKS,
    PERIOD,
    REST_PERIOD,
    Mark,
    Ring,
    Samples,
    decode,
    read_marks,
)
from mlxbench_kernel.remote.memory_asked import Asked

ANSWER_SECONDS = 0.5  # after which a rank is late, and is asked apart from the others
LATE_SECONDS = 2.0  # that one which is late may take
DOWN_SECONDS = 60.0  # that a cluster may be down before it is given up
# Those that do not send samples by themselves are asked less often while they have something to do:
# samples are taken as often as ever, and come some at a time.
BUSY_PERIOD = 0.4
RENEW_SECONDS = 0.6 * ASKED_SECONDS  # after which those that do are asked to go on
SILENT_SECONDS = 1.0  # without a sample, after which they are asked what there is
GATHER_SECONDS = 0.03  # in which what several ranks send is taken together
STEP, CELL = COLUMNS.index("step"), COLUMNS.index("cell")
DOWN = "the cluster is down"
SKEW = 0.1  # seconds that clocks of hosts may differ without it being seen
Changed = Callable[[], None]


@dataclass
class Seen:
    """What is known of one rank.

    Attributes
    ----------
    rank, host, pid
        Which one.
    ring : Ring
        Its samples, float64 [n, columns] as in `COLUMNS`; time is that of this machine.
    marks
        Cells, and what the user has marked. Their numbers, which samples have too, are no other's:
        those of a process that was started anew go on from those of the one before.
    since
        Unix time since when it has not answered; None while it does.
    why
        In words, where it is gone.
    how
        In few words how its process has ended, where that is known.
    pools
        Keys of the pools that it draws from (`Pool.key`); empty as long as they are not known.
    """

    rank: int
    host: str
    pid: int
    ring: Ring = field(default_factory=Ring)
    marks: list[Mark] = field(default_factory=list)
    since: float | None = None
    why: str = ""
    how: str = ""
    pools: tuple[PoolKey, ...] = ()
    record: str = ""
    earlier: list[Mark] = field(default_factory=list)  # of a process that is gone
    begun: int = 0  # numbers of marks before this process
    after: float = float("-inf")  # the last sample of the process before
    cursor: int = 0
    version: int = -1
    pushes: bool = False  # whether it sends samples by itself
    asked: float = float("-inf")  # `time.monotonic` of its last answer
    heard: float = float("-inf")  # the same of whatever it said
    behind: bool = False  # something that it sent did not arrive
    skew: float = 0.0
    quickest: float = float("inf")

    @property
    def last(self) -> dict[str, float]:
        """The last sample by column; empty where there was none."""
        row = self.ring.last
        return {} if row is None else dict(zip(COLUMNS, row.tolist(), strict=True))

    @property
    def cell(self) -> Mark | None:
        """The cell of the user's that runs, as last heard."""
        last = next((mark for mark in reversed(self.marks) if mark.kind == "cell"), None)
        return last if last is not None and last.lasts else None


class MemoryFeed:
    """Hears what ranks send by themselves, and asks for the rest, on threads of its own.

    A rank that is late is asked apart from the others, which so stay live.

    Parameters
    ----------
    asked
        Whom.
    period
        Seconds from one sample to the next.

    Attributes
    ----------
    ranks : list of Seen
        By rank.
    """

    def __init__(self, asked: Asked, period: float = PERIOD) -> None:
        self.asked, self.period = asked, max(period, PERIOD)
        self.ranks = [Seen(*each) for each in asked.who()]
        self._watchers: list[Changed] = []
        self._closed, self._news = threading.Event(), threading.Event()
        self._pushed: deque[dict[str, Any]] = deque()
        self._taking = threading.Lock()
        self._late: set[int] = set()
        self._fill()
        for name, work in (("memory", self._follow), ("memory late", self._ask_late)):
            threading.Thread(target=work, name=f"mlxbench-{name}", daemon=True).start()

    def watch(self, changed: Changed) -> Changed:
        """Have a function called after something new was heard, on a thread of its own.

        Returns
        -------
        function
            Ends it.
        """
        self._watchers.append(changed)
        self._news.set()

        def end() -> None:
            with suppress(ValueError):
                self._watchers.remove(changed)

        return end

    def close(self) -> None:
        """Ask no more, and hear no more."""
        self._closed.set()
        self._news.set()

    @property
    def watched(self) -> bool:
        """Whether somebody watches."""
        return bool(self._watchers)

    @property
    def closed(self) -> bool:
        """Whether nobody is asked any more."""
        return self._closed.is_set()

    def mark(self, name: str) -> None:
        """Put a mark into the record of all ranks; "" ends the last one."""
        ranks = self.asked.living()
        self.asked.ask("memory_mark", {rank: {"name": name} for rank in ranks}, LATE_SECONDS)

    # -- asking --------------------------------------------------------------------

    def _fill(self) -> None:
        """Ask for the first time, so that there is something to show."""
        with suppress(Exception):
            self._see_who_lives()
            self.asked.hear(self._hear)
            self._ask([each.rank for each in self.ranks if each.since is None], LATE_SECONDS)

    def _follow(self) -> None:
        down = float("inf")  # since when the cluster is
        while not self._closed.is_set():
            began = time.monotonic()
            if self.asked.closed:
                down = min(down, began)
                self._see_who_lives()
                if began - down > DOWN_SECONDS:  # else it may be starting anew
                    self.close()
            else:
                down = float("inf")
                with suppress(Exception):  # a cluster that goes down meanwhile
                    self.asked.hear(self._hear)
                    self._take_pushed()
                    self._see_who_lives()
                    self._ask(self._due(began), ANSWER_SECONDS)
            self._tell()
            self._rest(began)
        self.asked.hear(None)
        self._tell()  # that it has ended

    def _due(self, now: float) -> list[int]:
        """Whom to ask now."""
        prompt = [each for each in self.ranks if each.rank not in self._late]
        if not self._watchers:
            return [each.rank for each in prompt if now - each.asked >= 0.9 * REST_PERIOD]
        return [
            each.rank
            for each in prompt
            if not each.pushes
            or each.behind
            or now - each.asked >= RENEW_SECONDS
            or now - each.heard >= SILENT_SECONDS + self.period
        ]

    def _rest(self, began: float) -> None:
        """Until there is something to do."""
        if self._watchers and (self.asked.closed or not all(each.pushes for each in self.ranks)):
            busy = not self.asked.closed and self._is_busy()
            period = max(self.period, BUSY_PERIOD) if busy else self.period
            self._closed.wait(began + period - time.monotonic())
            return
        self._closed.wait(GATHER_SECONDS)
        if not self._pushed:  # else one who begins to watch ends it too
            self._news.wait(REST_PERIOD / 4 if self._watchers else REST_PERIOD)
        self._news.clear()

    def _is_busy(self) -> bool:
        """Whether a rank runs a cell, or a stepper takes steps."""
        for each in self.ranks:
            _, rows = each.ring.since(each.ring.taken - 5)
            if len(rows) and (not math.isnan(rows[-1, CELL]) or rows[-1, STEP] > rows[0, STEP]):
                return True
        return False

    def _ask_late(self) -> None:
        while not self._closed.wait(self.period):
            with suppress(Exception):  # a cluster that is down
                for each in self.ranks:
                    if each.since is not None and not each.why and self._is_gone(each):
                        each.how = self.asked.how_gone(each.rank)
                        each.why = self.asked.why_gone(each.rank) or "gone"
                if self._late:
                    self._ask(sorted(self._late.copy()), LATE_SECONDS)

    def _is_gone(self, seen: Seen) -> bool:
        return seen.rank not in self.asked.living()

    def _see_who_lives(self) -> None:
        who = [] if self.asked.closed else self.asked.who()
        for rank, host, pid in who:
            if rank < len(self.ranks) and self.ranks[rank].pid != pid:  # it was started anew
                self.ranks[rank].host, self.ranks[rank].pid = host, pid
                self.ranks[rank].quickest, self.ranks[rank].skew = float("inf"), 0.0
                self.ranks[rank].pushes = False
            elif rank >= len(self.ranks):
                self.ranks.append(Seen(rank, host, pid))
        if who:
            del self.ranks[len(who) :]
        living = () if self.asked.closed else self.asked.living()
        for each in self.ranks:
            if each.rank not in living:
                each.since = each.since or time.time()
                if self.asked.closed:
                    each.why = DOWN

    def _hear(self, content: dict[str, Any]) -> None:
        """Keep what a rank has sent for the thread that follows; on one that has other work."""
        self._pushed.append(content)
        self._news.set()

    def _take_pushed(self) -> None:
        while self._pushed:
            content = self._pushed.popleft()
            for seen in self.ranks:
                if seen.record == content["record"]:
                    with self._taking:
                        self._take_push(seen, content)

    def _take_push(self, seen: Seen, content: Mapping[str, Any]) -> None:
        """Keep what a rank has sent, unless something before it is missing."""
        seen.heard = time.monotonic()
        seen.since, seen.why, seen.how = None, "", ""
        rows = decode(content["samples"])
        if content["next"] - len(rows) > seen.cursor:
            seen.behind = True
        else:
            self._put(seen, rows, content["next"], seen.cursor)
        if content["version"] > seen.version:
            if content["was"] > seen.version:
                seen.behind = True
                return
            known = {mark.number: mark for mark in seen.marks[len(seen.earlier) :]}
            for mark in _moved(read_marks(content["marks"]), seen):
                known[mark.number] = mark
            seen.marks = seen.earlier + list(known.values())[-MARKS:]
            seen.version = content["version"]

    def _ask(self, ranks: Sequence[int], timeout: float) -> None:
        living = set(self.asked.living())
        waiting = [rank for rank in ranks if rank in living]
        while waiting:
            seen = {rank: self.ranks[rank] for rank in waiting}
            sent, began = time.time(), time.monotonic()
            told = self.asked.ask(
                "memory",
                {
                    rank: {
                        "since": each.cursor, "version": each.version, "period": self.period,
                        "record": each.record, "push": bool(self._watchers),
                    }
                    for rank, each in seen.items()
                },
                timeout,
            )  # fmt: skip
            for rank in waiting:
                if rank not in told:
                    self._late.add(rank)
                    if seen[rank].heard < began:  # else it only has no time to answer
                        seen[rank].since = seen[rank].since or time.time()
            with self._taking:
                waiting = [rank for rank in told if self._take(seen[rank], told[rank], sent)]
            for rank in told.keys() - set(waiting):  # all of it is here: asked with the others
                self._late.discard(rank)

    def _take(self, seen: Seen, told: Mapping[str, Any], sent: float) -> bool:
        """Keep what a rank has told; whether there is more."""
        arrived, gone = time.time(), seen.since
        seen.since, seen.why, seen.how = None, "", ""
        seen.asked = seen.heard = time.monotonic()
        seen.pushes, seen.behind = told["pushes"], False
        if arrived - sent < seen.quickest:
            seen.quickest = arrived - sent
            skew = (sent + arrived) / 2 - told["now"]
            seen.skew = skew if abs(skew) > SKEW else 0.0
        same = told["record"] == seen.record
        if not same:  # it counts from 0
            seen.begun = 1 + max((mark.number for mark in seen.marks), default=-1)
            seen.after = seen.last.get("time", float("-inf"))
        self._put(seen, decode(told["samples"]), told["next"], seen.cursor if same else 0)
        if same and told["version"] < seen.version:  # it has sent more meanwhile
            return bool(told["more"])
        if "marks" in told:
            marks = _moved(read_marks(told["marks"]), seen)
            if not same:
                for mark in seen.marks:  # what ran when its process ended
                    mark.end = (gone or arrived) if mark.lasts else mark.end
                seen.earlier = seen.marks[-MARKS:]
            seen.marks = seen.earlier + marks
        seen.record, seen.version = told["record"], told["version"]
        return bool(told["more"])

    def _put(self, seen: Seen, rows: Samples, following: int, known: int) -> None:
        """Keep samples but those before a number, which are here; where there is none missing."""
        first = following - len(rows)
        rows = rows[max(known - first, 0) :]
        rows[:, 0] += seen.skew
        rows[:, CELL] += seen.begun
        # Where ranks were dropped, another one's process has this number now, and tells its past.
        seen.ring.put(rows[rows[:, 0] > seen.after])
        seen.cursor = max(following, known)

    def _tell(self) -> None:
        for changed in list(self._watchers):
            changed()


def _moved(marks: list[Mark], seen: Seen) -> list[Mark]:
    """Marks in time of this machine, with numbers that no earlier process has used."""
    for mark in marks:
        mark.number += seen.begun
        mark.begin += seen.skew
        mark.end += seen.skew
    return marks
