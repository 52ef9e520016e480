"""Looks at the group while a cell runs: who waits for whom, and whether that can ever end.

A rank that raised will take part in nothing more in this cell, so whoever waits for its next
collective would wait for ever: that is freed. Ranks that disagree on a collective are found by
comparing a checksum of what each has asked for. A rank that is merely late is only named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.mismatch import find_mismatch
from mlxbench_kernel.cluster.words import WAIT_SECONDS, doing, waiting
from mlxbench_kernel.errors import CollectiveMismatch
from mlxbench_kernel.rank.requests import RELEASED

ANSWER_SECONDS = 1.0
NO_LIMIT = 2**63 - 1


class GroupWatch:
    """The group, as far as one cell has to do with it.

    Parameters
    ----------
    client
        Client of the cluster.
    ranks
        Where the cell runs.
    size
        Ranks of the cluster.
    renewable
        Whether blocked ranks can be freed.

    Attributes
    ----------
    mismatch : CollectiveMismatch or None
        What the ranks disagree on.
    freed : bool
        Whether collectives were broken off or refused.
    stuck : bool
        Whether a rank is in a collective that it cannot be freed from.
    """

    def __init__(
        self, client: BenchClient, ranks: Sequence[int], size: int, renewable: bool
    ) -> None:
        self._client = client
        self._ranks = list(ranks)
        self._renewable = renewable
        self._whole = len(self._ranks) == size > 1
        self._progress: dict[int, dict[str, Any]] = {}
        self._protected: dict[int, list[int]] = {}
        self._limit = NO_LIMIT
        self._reason = ""
        self._deadlock: Any = None
        self.mismatch: CollectiveMismatch | None = None
        self.freed = False
        self.stuck = False

    def raised(self, rank: int, busy: Sequence[int], what: str) -> None:
        """A rank's cell has failed: free those who wait for more of it than it has done.

        Parameters
        ----------
        rank
            Which one.
        busy
            Ranks that the cell still runs on.
        what
            Why, as "rank 1 raised ValueError".
        """
        if not busy:
            return
        progress = self._client.groups([rank]).get(rank)
        self._reason = self._reason or what
        if progress is None:  # gone, or it has no collective log
            self.free(busy, what)
            return
        self._progress[rank] = progress
        self._limit = min(self._limit, progress["whole"])
        done = {peer: (sends, receives) for peer, sends, receives in progress["peers"]}
        self.freed = True
        limits = {}
        for other in busy:
            sends, receives = done.get(other, (0, 0))
            limits[other] = {
                "whole": self._limit,
                "peers": [(rank, receives, sends)],
                "reason": f"{RELEASED}: {self._reason}",
            }
        self._client.call_each("limit", limits, ANSWER_SECONDS)

    def free(self, ranks: Sequence[int], what: str) -> None:
        """Free ranks from whatever they wait for; the group has to be made anew then."""
        self.freed = True
        self._client.call("release", ranks, ANSWER_SECONDS, reason=f"{RELEASED}: {what}")

    def look(self, busy: Sequence[int]) -> dict[int, str]:
        """Ask the busy ranks.

        Returns
        -------
        dict
            For each, in words, what it waits for or does; those that do not answer are left out.
        """
        answers = self._client.call("watch", busy, ANSWER_SECONDS)
        groups = {rank: said["group"] for rank, said in answers.items() if said["group"]}
        self._progress.update(groups)
        late = [r for r, group in groups.items() if group["waits"] > WAIT_SECONDS]
        certain = all(group["certain"] for group in groups.values())
        if self._whole and not self.freed and late:
            others = [rank for rank in self._ranks if rank not in groups]
            self._progress.update(self._client.groups(others))
            self.compare(busy)
            if certain and not self.freed and len(late) == len(self._ranks):
                self._look_for_deadlock(groups, busy)
        return {rank: waiting(said) or doing(said) for rank, said in answers.items()}

    def is_waiting(self, ranks: Sequence[int]) -> bool:
        """Whether one of the ranks is in a collective."""
        return any(group["running"] for group in self._client.groups(ranks).values())

    def is_stuck(self, ranks: Sequence[int]) -> bool:
        """Whether a rank still is in a collective some time after it should have been freed.

        Without the native module that is not known: then a rank counts that ever called one.
        """
        if self.freed and not self._renewable:
            self.stuck = any(
                group["running"] or (group["whole"] and not group["certain"])
                for group in self._client.groups(ranks).values()
            )
        return self.stuck

    def compare(self, busy: Sequence[int] = ()) -> None:
        """See whether all ranks have asked for the same collectives, as far as they have come."""
        progress = {rank: self._progress[rank] for rank in self._ranks if rank in self._progress}
        if len(progress) < 2 or len({group["link"] for group in progress.values()}) > 1:
            return
        least = min(group["whole"] for group in progress.values())
        if all(group["whole"] == least for group in progress.values()):
            chains = {rank: group["chain"] for rank, group in progress.items()}
        else:
            chains = self._client.call("chain", list(progress), ANSWER_SECONDS, whole=least)
        if None in chains.values() or len(set(chains.values())) < 2:
            return
        self._tell(busy, find_mismatch(self._logs()))

    def compare_pairs(self) -> None:
        """See whether what was sent is what was received."""
        if any(group["peers"] for group in self._progress.values()):
            self._tell((), find_mismatch(self._logs()))

    def note(self, rank: int, progress: dict[str, Any] | None) -> None:
        """What a rank said of the group as its cell ended."""
        if progress is not None:
            self._protected[rank] = progress.pop("protected")
            self._progress[rank] = progress

    def number_protected(self) -> None:
        """Once a cell has ended well: see that all ranks count completed evaluations alike.

        By these counts they find, after a fault, the last values that all have. In a cell where
        one rank has changed what is protected, and the others have not, it counts one more.
        """
        lasts = {counts[-1] for counts in self._protected.values() if counts}
        if self._whole and len(lasts) > 1 and all(self._protected.values()):
            # A new number, so that a rank which does not hear of it has nothing in common.
            count = max(lasts) + 1
            self._client.call("number_protected", self._ranks, ANSWER_SECONDS, count=count)

    @property
    def whole(self) -> bool:
        """Whether the cell runs on all ranks of a group."""
        return self._whole

    def is_damaged(self) -> bool:
        """Whether the group has to be made anew before it is used again: something was broken
        off or refused, or after an error not all ranks have come equally far."""
        if self.stuck:
            return True
        groups = self._client.groups(self._ranks).values()
        if any(group["refused"] or group["broken"] or group["running"] for group in groups):
            return True
        if len({(group["whole"], group["chain"]) for group in groups}) > 1:
            return self._whole
        if any(group["limited"] for group in groups):
            self._client.call("lift", self._ranks, ANSWER_SECONDS)
        return False

    def _logs(self) -> dict[int, list[dict[str, Any]]]:
        return self._client.call("collectives", self._ranks, ANSWER_SECONDS)

    def _look_for_deadlock(self, groups: dict[int, dict[str, Any]], busy: Sequence[int]) -> None:
        """Free ranks that wait for one another in different things."""
        running = {rank: tuple(group["running"]) for rank, group in groups.items()}
        waits = {rank: (group["whole"], group["peers"]) for rank, group in groups.items()}
        seen, self._deadlock = self._deadlock, (running, waits)
        if seen != self._deadlock or len({each[:2] for each in running.values()}) == 1:
            return
        if not all(_has_counterpart(rank, running) for rank in running):
            self._tell(busy, find_mismatch(self._logs(), blocked=running))

    def _tell(self, busy: Sequence[int], found: CollectiveMismatch | None) -> None:
        if found is None or self.mismatch is not None:
            return
        self.mismatch = found
        self.free(busy or self._ranks, "the ranks disagree on a collective")


def _has_counterpart(rank: int, running: dict[int, Any]) -> bool:
    """Whether what a rank waits for may still come, as far as this can be seen."""
    operation, peer, _ = running[rank]
    if peer < 0:
        return all(other[1] < 0 for other in running.values())
    theirs, back, _ = running[peer]
    return bool(back == rank and (theirs == "send") != (operation == "send"))
