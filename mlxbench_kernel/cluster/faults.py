"""What is left to mend of a cluster's group, and mending it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from mlxbench_kernel.cluster.recovery import on, recover
from mlxbench_kernel.errors import ClusterError
from mlxbench_kernel.rank import recovering
from mlxbench_kernel.rank.requests import RELEASED

if TYPE_CHECKING:
    from mlxbench_kernel.cluster.cluster import Cluster

Tell = Callable[[str], None]
ANSWER_SECONDS = 1.0
INTERRUPT_SECONDS = 0.3  # until ranks that wait in a collective are freed
SETTLE_SECONDS = 0.6
IDLE_SECONDS = 0.3  # that ranks may take to end after their cell's reply


class Faults:
    """Remembers that a group was broken off until it was made anew.

    Parameters
    ----------
    cluster
        Whose group it is.

    Attributes
    ----------
    reason : str
        What happened, "" while the group is whole.
    stuck : bool
        Whether a rank is in a collective that it cannot be freed from.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.reason = ""
        self.stuck = False
        self.owed: set[int] = set()
        self._mending = threading.RLock()  # an interrupt and the cell it ends both mend

    def mend(self, tell: Tell) -> None:
        """Mend what can be mended now.

        Ranks that still compute are left alone: the next cell asks again.

        Parameters
        ----------
        tell
            Is told in words what was done.
        """
        with self._mending:
            self._mend(tell)

    def _mend(self, tell: Tell) -> None:
        if not self.reason:
            return
        cluster = self._cluster
        info = cluster.info
        living = cluster.living()
        whole = len(living) == cluster.size
        if not info.renewable and (self.stuck or not self._is_intact(living)):
            if whole:
                cluster.rebuild(self.reason, tell)
            return
        if info.renewable:
            self._release()
        if self._busy():
            return
        try:
            said = recover(
                cluster.client, info.hosts, info.backend, self.reason, living,
                renew=whole and info.renewable,
            )  # fmt: skip
        except ClusterError as error:
            raise ClusterError(
                f"the group could not be made anew after: {self.reason} ({error}); variables are "
                "kept: %mlx_dist heal tries again"
            ) from None
        if whole:
            self.reason = ""
            cluster.client.call("lift", living, ANSWER_SECONDS, force=True)
        if said:
            tell("; ".join(said))

    def _is_intact(self, ranks: Sequence[int]) -> bool:
        """Whether nothing was broken off, and all ranks have come equally far."""
        groups = self._cluster.client.groups(ranks).values()
        if any(group["broken"] or group["running"] for group in groups):
            return False
        return len({(group["whole"], group["chain"]) for group in groups}) < 2

    def level(self, reason: str, alike: bool, tell: Tell) -> None:
        """After a cell that did not end well, though no collective was broken off: see that
        what is protected is the same on all ranks.

        An interrupt finds ranks at different places, between two collectives or in the middle of
        an update. They go back to the last values that all have completed.

        Parameters
        ----------
        reason
            What happened.
        alike
            Whether it happened on all ranks at the same place: then all are left as they are
            if they are equal.
        tell
            Is told in words what was done.
        """
        cluster = self._cluster
        ranks = cluster.living()
        if not any(cluster.client.call("protected", ranks, ANSWER_SECONDS).values()):
            return
        if self._busy():
            self.reason = reason  # the next cell sees to it
            return
        found = set(map(tuple, on(cluster.client, ranks, recovering.standing)))
        if len(found) == 1 and (alike or all(settled for _, settled in found)):
            return
        info = cluster.info
        for line in recover(cluster.client, info.hosts, info.backend, reason, ranks, renew=False):
            tell(line)

    def free(self, what: str, ranks: Iterable[int]) -> dict[int, str]:
        """See that interrupted ranks end: those that wait in a collective are freed.

        Returns
        -------
        dict
            What the ranks do then, see `Cluster.doing`.
        """
        chosen = list(ranks)
        states = self.ended(chosen, INTERRUPT_SECONDS)
        if all(does == "idle" for does in states.values()):
            return states
        if any(group["running"] for group in self._cluster.client.groups(chosen).values()):
            self.reason = self.reason or what
            self._release()
        return self.ended(chosen, SETTLE_SECONDS)

    def ended(self, ranks: Sequence[int], seconds: float) -> dict[int, str]:
        """What ranks do, as soon as all are idle, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            states = self._cluster.doing(ranks)
            if all(does == "idle" for does in states.values()) or time.monotonic() > deadline:
                return states
            time.sleep(0.02)  # the end of a cell that others wait for is no event here

    def _release(self) -> None:
        """Free whoever still waits in the old group."""
        everyone = range(self._cluster.size)
        reason = f"{RELEASED}: {self.reason}"
        self._cluster.client.call("release", everyone, ANSWER_SECONDS, reason=reason)

    def wait(self, tell: Tell, show: Tell) -> None:
        """Before a cell: mend what is left, once all ranks have ended what they do.

        Parameters
        ----------
        tell
            Is told in words what was done.
        show
            Shows who is waited for meanwhile.
        """
        if self.reason and self._cluster.info.renewable:
            self._release()
        while self.reason and (busy := self._busy()):
            show(f"waiting for {self._who(busy)} before the group can be made anew")
        self.mend(tell)

    def _busy(self) -> dict[int, str]:
        states = self.ended(self._cluster.living(), IDLE_SECONDS)
        return {rank: does for rank, does in states.items() if does != "idle"}

    def _who(self, busy: dict[int, str]) -> str:
        return ", ".join(f"rank {rank} ({does})" for rank, does in busy.items())
