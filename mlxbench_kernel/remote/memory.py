"""`Memory`: what ranks hold, as a notebook watches and limits it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.cluster.turns import WAITING
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.memory import Grown, Holdings, grew
from mlxbench_kernel.memory.in_shell import between_cells
from mlxbench_kernel.memory.record import PERIOD
from mlxbench_kernel.remote.asking import Tell, ask_ranks
from mlxbench_kernel.remote.growth_watch import GrowthWatch
from mlxbench_kernel.remote.memory_asked import Asked, OfRanks, OfThisProcess
from mlxbench_kernel.remote.memory_feed import Changed, MemoryFeed
from mlxbench_kernel.remote.on_memory import on_memory

ANSWER_SECONDS = 5.0
LIMIT_SECONDS = 5.0  # from one look at limits, which users may set in cells, to the next
NAMES = {"cap": "GPU cap", "memory": "memory limit", "cache": "cache limit", "wired": "wired limit"}

T = TypeVar("T")


class Memory:
    """Memory of the ranks of a cluster, or of the notebook's own kernel.

    Parameters
    ----------
    of
        The cluster, or `OfThisProcess`.
    period
        Seconds from one sample to the next, 0.1 at least.

    Attributes
    ----------
    feed : MemoryFeed
        Samples and marks of each rank.
    markers
        Limits in bytes by name, by rank, for `bars`.
    growth : GrowthWatch
        Ranks whose memory grows step after step.
    known_limits
        What `limits` gives, as last heard.
    waiting
        What a request waits for, in words; "" if for nothing.
    """

    def __init__(self, of: Cluster | Asked, period: float = PERIOD) -> None:
        self.cluster = of if isinstance(of, Cluster) else None
        self.feed = MemoryFeed(OfRanks(of) if isinstance(of, Cluster) else of, period)
        self.markers: dict[int, dict[str, float]] = {}
        self.known_limits: dict[int, dict[str, Any]] = {}
        self.waiting = ""
        self._doing = threading.Lock()  # one request at a time where cells run
        self._looking = threading.Lock()
        self.look_at_limits()
        self.growth = GrowthWatch(self.feed, self.look)
        self._closed = threading.Event()
        threading.Thread(target=self._keep_limits, name="mlxbench-limits", daemon=True).start()

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.feed.ranks)

    def watch(self, changed: Changed) -> Changed:
        """See `MemoryFeed.watch`."""
        return self.feed.watch(changed)

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self.growth.close()
        self.feed.close()

    def mark(self, name: str) -> None:
        """Begin a span with a name in the timelines of all ranks; "" ends the last one."""
        self.feed.mark(name)

    # -- what holds it -------------------------------------------------------------

    def holdings(self, ranks: Iterable[int] | None = None) -> dict[int, Holdings]:
        """What holds the memory of ranks, by rank; see `mlxbench_kernel.memory.attribute`.

        A rank that runs a cell answers too; then what lazy graphs hold is not told.
        """
        chosen = self.choose(ranks)
        if isinstance(self.feed.asked, OfThisProcess):
            here = between_cells(self.feed.asked.shell, lambda: on_memory("holdings"))
            return {0: Holdings(**(self._told_holdings(chosen)[0] if here is None else here))}
        busy = self._ask("memory_busy", chosen)  # those that do not answer are left out
        found = self._told_holdings([rank for rank in busy if busy[rank]])
        if idle := [rank for rank in busy if not busy[rank]]:
            try:
                if self._doing.locked():  # it would wait with what is being done, for others
                    raise _Occupied
                found |= self._do(idle, "holdings", show=_wait_for_nobody)
            except _Occupied:  # also by a cell that has begun since
                found |= self._told_holdings(idle)
        return {rank: Holdings(**told) for rank, told in sorted(found.items())}

    def _told_holdings(self, ranks: Sequence[int]) -> dict[int, Any]:
        return self._ask("memory_holdings", ranks) if ranks else {}

    def look(self, rank: int) -> Holdings:
        """`holdings` of one rank.

        Raises
        ------
        ClusterError
            It does not answer.
        """
        return _answer(self.holdings([rank]), rank)

    def looks(self, rank: int) -> list[tuple[str, float]]:
        """After which cells a rank knows what held its memory, and when that was (Unix time).

        Raises
        ------
        ClusterError
            It does not answer.
        """
        told = _answer(self._ask("memory_looks", [rank]), rank)
        return [(str(name), float(when)) for name, when in told]

    def grew(self, rank: int, since: str) -> list[Grown]:
        """What a rank holds more of than after an earlier cell; see `memory.grew`.

        Parameters
        ----------
        rank
            Which one.
        since
            The cell, as ``Cell In[7]``, ``7``, or the first line of one without a name.

        Raises
        ------
        UsageError
            It is not known what it held then.
        ClusterError
            It does not answer.
        """
        (rank,) = self.choose([rank])
        name = f"Cell In[{since}]" if since.isdigit() else since
        then = _answer(self._ask("memory_look", [rank], name=name), rank)
        if then is None:
            known = ", ".join(name for name, _ in self.looks(rank)[-10:]) or "no cell yet"
            raise UsageError(
                f"rank {rank}: what it held after {name} is not known; known are {known}"
            )
        return grew(Holdings(**then), self.look(rank))

    def said_of_growth(self, ask: bool = False) -> list[str]:
        """A line for each rank that grows, or grew in a cell that is over.

        Parameters
        ----------
        ask
            Whether to ask ranks if a cell runs there; else their last sample tells, which may be of
            a cell that has ended since.
        """
        running = {each.rank for each in self.feed.ranks if each.cell is not None}
        if ask:
            running = {
                rank for rank, busy in self._ask("memory_busy", sorted(running)).items() if busy
            }
        reported = sorted(self.growth.reported.copy().items())
        return [each.said_now(rank in running) for rank, each in reported if each.said]

    # -- limits --------------------------------------------------------------------

    def limits(self) -> dict[int, dict[str, Any]]:
        """By rank: ``memory``, ``cache``, ``wired`` and ``cap`` in bytes, None where not known, and
        ``allocator``; see `memory.limits.current`."""
        self.look_at_limits()
        return dict(self.known_limits)

    def look_at_limits(self) -> None:
        """Ask all ranks that answer."""
        with self._looking:
            there = [each.rank for each in list(self.feed.ranks) if each.since is None]
            told = self._ask("memory_limits", there)
            for each in list(self.feed.ranks):
                if each.rank in told:
                    pools = told[each.rank].pop("pools", ())
                    each.pools = tuple((name, uuid, group) for name, uuid, group in pools)
            self.known_limits |= told
            for rank in [rank for rank in self.known_limits if rank >= self.size]:
                del self.known_limits[rank], self.markers[rank]  # ranks were dropped
            self.markers |= {
                rank: {
                    name: float(said[key]) for key, name in NAMES.items() if said[key] is not None
                }
                for rank, said in self.known_limits.items()
            }

    def said_beforehand(self, ranks: Iterable[int] | None = None, **sizes: int | str) -> str:
        """What `set_limits` with the same arguments would do now, in words.

        Raises
        ------
        UsageError
            A size is wrong.
        """
        chosen = self.choose(ranks)
        return self._said_beforehand(chosen, sizes) + self._left_out(ranks)

    def _left_out(self, ranks: Iterable[int] | None) -> str:
        """A line about ranks that are gone, where all are meant."""
        gone = sorted(set(range(self.size)) - set(self.choose(None))) if ranks is None else []
        if not gone:
            return ""
        which = ", ".join(map(str, gone))
        many = len(gone) > 1
        return (
            f"\nnot on rank{'s' if many else ''} {which}, which {'are' if many else 'is'} gone: "
            "set it again after %mlx_dist heal"
        )

    def _said_beforehand(self, chosen: Sequence[int], sizes: Mapping[str, int | str]) -> str:
        told = self._ask("memory_said", chosen, sizes=sizes)
        errors = {each["error"] for each in (_answer(told, n) for n in chosen) if "error" in each}
        if errors:
            raise UsageError(min(errors))
        by_text: dict[str, list[int]] = {}
        for rank, each in sorted(told.items()):
            by_text.setdefault(each["said"], []).append(rank)
        if len(by_text) == 1:
            return next(iter(by_text))
        return "\n".join(
            f"rank{'s'[: len(ranks) > 1]} {', '.join(map(str, ranks))}: {text}"
            for text, ranks in by_text.items()
        )

    def set_limits(self, ranks: Iterable[int] | None = None, **sizes: int | str) -> None:
        """Set limits of MLX: ``set_limits(memory="12GB", cache="1GB")``; see `limits.apply`.

        Raises
        ------
        UsageError
            A size is wrong; nothing was changed.
        """
        if not sizes:
            raise UsageError('no limit was named: type set_limits(memory="12GB") or cache, wired')
        chosen = self.choose(ranks)
        self.said_beforehand(chosen, **sizes)  # wrong on any rank: set on none
        self._do(chosen, "set_limits", sizes)

    def clear_cache(self, ranks: Iterable[int] | None = None) -> int:
        """Have MLX give its cache back to the system; how many bytes that were, over all ranks."""
        return sum(self._do(self.choose(ranks), "clear_cache").values())

    def reset_peak(self, ranks: Iterable[int] | None = None) -> None:
        """Have the peak begin anew."""
        self._do(self.choose(ranks), "reset_peak")

    def choose(self, ranks: Iterable[int] | None) -> list[int]:
        """The ranks, checked; all that live for None."""
        living = list(self.feed.asked.living())
        if ranks is None:
            return living
        chosen = sorted(set(ranks))
        for rank in chosen:
            if not 0 <= rank < self.size:
                raise UsageError(f"there is no rank {rank}: ranks are 0 to {self.size - 1}")
            if rank not in living:
                raise ClusterError(self.feed.asked.why_gone(rank))
        return chosen

    # -- asking --------------------------------------------------------------------

    def _ask(self, call: str, ranks: Sequence[int], **arguments: Any) -> dict[int, Any]:
        """Ask ranks on the control channel."""
        return self.feed.asked.ask(call, dict.fromkeys(ranks, arguments), ANSWER_SECONDS)

    def _do(
        self, ranks: Sequence[int], name: str, *arguments: Any, show: Tell | None = None
    ) -> dict[int, Any]:
        """Have ranks do something where their cells run: after those that are under way."""
        try:
            if self.cluster is None:
                return {0: on_memory(name, *arguments)}
            with self._doing:
                return ask_ranks(
                    self.cluster, ranks, lambda text: None, None, name, *arguments,
                    of=on_memory, show=show or (lambda late: self._wait_for(ranks, late)),
                )  # fmt: skip
        finally:
            self.waiting = ""
            self.look_at_limits()

    def _wait_for(self, ranks: Sequence[int], late: str) -> None:
        """Say what is waited for: the cells that run on ranks, or who is late."""
        running: dict[str, list[int]] = {}
        for each in list(self.feed.ranks):
            cell = each.cell if each.rank in ranks else None
            if cell is not None:
                running.setdefault(cell.name, []).append(each.rank)
        cells = [
            f"{name} (rank{'s'[: len(there) > 1]} {', '.join(map(str, there))})"
            for name, there in running.items()
        ]
        self.waiting = f"until {' and '.join(cells)} has ended" if cells else late

    def _keep_limits(self) -> None:
        while not self._closed.wait(LIMIT_SECONDS) and not self.feed.closed:
            with suppress(Exception):  # a cluster that goes down meanwhile
                self.look_at_limits()


class _Occupied(Exception):
    """Something else uses the ranks."""


def _wait_for_nobody(late: str) -> None:
    if late.startswith(WAITING):
        raise _Occupied


def _answer(told: Mapping[int, T], rank: int) -> T:
    """What a rank has told.

    Raises
    ------
    ClusterError
        Nothing.
    """
    if rank not in told:
        raise ClusterError(f"rank {rank} has not answered in {ANSWER_SECONDS:g} s")
    return told[rank]
