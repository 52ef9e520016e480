"""What ranks tell of their memory, kept in the notebook: some times a second, whatever they do."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.memory.answers import MemoryAnswers
from mlxbench_kernel.memory.pools import PoolKey
from mlxbench_kernel.memory.record import (
    COLUMNS,
    MARKS,
    PERIOD,
    REST_PERIOD,
    Mark,
    Ring,
    decode,
    read_marks,
)

ANSWER_SECONDS = 0.5  # after which a rank is late, and is asked apart from the others
LATE_SECONDS = 2.0  # that one which is late may take
DOWN_SECONDS = 60.0  # that a cluster may be down before it is given up
# While ranks have something to do, as an answer takes more of their time than a sample: samples
# are taken as often as ever, and come some at a time.
BUSY_PERIOD = 0.4
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
    cursor: int = 0
    version: int = -1
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


class Asked(Protocol):
    """Whom a `MemoryFeed` asks."""

    @property
    def closed(self) -> bool: ...
    def who(self) -> Sequence[tuple[int, str, int]]: ...
    def living(self) -> Sequence[int]: ...
    def why_gone(self, rank: int) -> str: ...
    def how_gone(self, rank: int) -> str: ...
    def ask(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]: ...


class OfRanks:
    """The ranks of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @property
    def closed(self) -> bool:
        return self.cluster.client.closed

    def who(self) -> Sequence[tuple[int, str, int]]:
        return [(each.rank, each.host, each.pid) for each in self.cluster.info.ranks]

    def living(self) -> Sequence[int]:
        return self.cluster.living()

    def why_gone(self, rank: int) -> str:
        return self.cluster.why_gone(rank)

    def how_gone(self, rank: int) -> str:
        return self.cluster.how_gone(rank)

    def ask(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]:
        return self.cluster.client.call_each(name, arguments, timeout)


class OfThisProcess:
    """The notebook's own kernel, as if it were rank 0.

    Parameters
    ----------
    namespace, hidden
        As for `mlxbench_kernel.memory.answers.MemoryAnswers`.
    shell
        As for `mlxbench_kernel.memory.in_shell.between_cells`.
    """

    closed = False

    def __init__(
        self, namespace: Mapping[str, Any], hidden: Mapping[str, Any], shell: Any = None
    ) -> None:
        self.answers = MemoryAnswers(namespace, hidden)
        self.shell = shell

    def who(self) -> Sequence[tuple[int, str, int]]:
        return [(0, socket.gethostname(), os.getpid())]

    def living(self) -> Sequence[int]:
        return [0]

    def why_gone(self, rank: int) -> str:
        return ""

    def how_gone(self, rank: int) -> str:
        return ""

    def ask(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]:
        return {rank: self.answers.calls[name](**own) for rank, own in arguments.items()}


class MemoryFeed:
    """Asks again and again, on threads of its own, until it is closed.

    A rank that is late is asked apart from the others, which so stay live.

    Parameters
    ----------
    asked
        Whom.
    period
        Seconds from one question to the next, and from one sample to the next.

    Attributes
    ----------
    ranks : list of Seen
        By rank.
    """

    def __init__(self, asked: Asked, period: float = PERIOD) -> None:
        self.asked, self.period = asked, max(period, PERIOD)
        self.ranks = [Seen(*each) for each in asked.who()]
        self._watchers: list[Changed] = []
        self._closed = threading.Event()
        self._late: set[int] = set()
        self._fill()
        for name, work in (("memory", self._ask_prompt), ("memory late", self._ask_late)):
            threading.Thread(target=work, name=f"mlxbench-{name}", daemon=True).start()

    def watch(self, changed: Changed) -> Changed:
        """Have a function called after something new was heard, on a thread of its own.

        Returns
        -------
        function
            Ends it.
        """
        self._watchers.append(changed)

        def end() -> None:
            with suppress(ValueError):
                self._watchers.remove(changed)

        return end

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()

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
            self._ask([each.rank for each in self.ranks if each.since is None], LATE_SECONDS)

    def _ask_prompt(self) -> None:
        due = time.monotonic()
        down = float("inf")  # since when the cluster is
        while not self._closed.is_set():
            if self.asked.closed:
                down = min(down, time.monotonic())
                self._see_who_lives()
                self._tell()
                if time.monotonic() - down > DOWN_SECONDS:  # else it may be starting anew
                    self.close()
                self._closed.wait(self.period)
                continue
            down = float("inf")
            with suppress(Exception):  # a cluster that goes down meanwhile
                self._see_who_lives()
                self._ask(
                    [each.rank for each in self.ranks if each.rank not in self._late],
                    ANSWER_SECONDS,
                )
            self._tell()
            period = max(self.period, BUSY_PERIOD) if self._is_busy() else self.period
            due = max(due + period, time.monotonic())
            self._closed.wait(due - time.monotonic())
            while not self._watchers and not self._closed.is_set():
                if time.monotonic() > due + REST_PERIOD:
                    break
                self._closed.wait(self.period)

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

    def _ask(self, ranks: Sequence[int], timeout: float) -> None:
        living = set(self.asked.living())
        waiting = [rank for rank in ranks if rank in living]
        while waiting:
            seen = {rank: self.ranks[rank] for rank in waiting}
            sent = time.time()
            told = self.asked.ask(
                "memory",
                {
                    rank: {
                        "since": each.cursor, "version": each.version, "period": self.period,
                        "record": each.record,
                    }
                    for rank, each in seen.items()
                },
                timeout,
            )  # fmt: skip
            for rank in waiting:
                if rank not in told:
                    self._late.add(rank)
                    seen[rank].since = seen[rank].since or time.time()
            waiting = [rank for rank in told if self._take(seen[rank], told[rank], sent)]
            for rank in told.keys() - set(waiting):  # all of it is here: asked with the others
                self._late.discard(rank)

    def _take(self, seen: Seen, told: Mapping[str, Any], sent: float) -> bool:
        """Keep what a rank has told; whether there is more."""
        arrived, gone = time.time(), seen.since
        seen.since, seen.why, seen.how = None, "", ""
        if arrived - sent < seen.quickest:
            seen.quickest = arrived - sent
            skew = (sent + arrived) / 2 - told["now"]
            seen.skew = skew if abs(skew) > SKEW else 0.0
        if anew := told["record"] != seen.record:  # it counts from 0
            seen.begun = 1 + max((mark.number for mark in seen.marks), default=-1)
        rows = decode(told["samples"])
        rows[:, 0] += seen.skew
        rows[:, CELL] += seen.begun
        seen.ring.put(rows)
        if "marks" in told:
            marks = read_marks(told["marks"])
            for mark in marks:
                mark.number += seen.begun
                mark.begin += seen.skew
                mark.end += seen.skew
            if anew:
                for mark in seen.marks:  # what ran when its process ended
                    mark.end = (gone or arrived) if mark.lasts else mark.end
                seen.earlier = seen.marks[-MARKS:]
            seen.marks = seen.earlier + marks
        seen.record, seen.cursor, seen.version = told["record"], told["next"], told["version"]
        return bool(told["more"])

    def _tell(self) -> None:
        for changed in list(self._watchers):
            changed()
