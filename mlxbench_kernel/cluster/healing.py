"""Brings back what a fault has taken: the controller, ranks, the group, protected state."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.cluster.bringup import BringUp
from mlxbench_kernel.cluster.cells import CellRun
from mlxbench_kernel.cluster.faults import Tell
from mlxbench_kernel.cluster.forming import Forming
from mlxbench_kernel.cluster.machinery import Progress
from mlxbench_kernel.cluster.recovery import common, number_link, on, outcome, refuse
from mlxbench_kernel.cluster.state import RankInfo
from mlxbench_kernel.cluster.transfer import Transfer
from mlxbench_kernel.cluster.watch import GroupWatch
from mlxbench_kernel.errors import ClusterError
from mlxbench_kernel.rank import recovering, startup
from mlxbench_kernel.rank.requests import OWN_CELL, RELEASED

if TYPE_CHECKING:
    from mlxbench_kernel.cluster.cluster import Cluster

ANSWER_SECONDS = 2.0
RESCUE_SECONDS = 120.0
SETTLE_SECONDS = 2.0
RETURN_SECONDS = 10.0
RESCUE_FOLDER = "~/.cache/mlxbench/rescue"
LOST = "what was neither protected nor made by a set-up cell is gone"


class Healing:
    """One attempt to heal a cluster.

    Parameters
    ----------
    cluster
        Which one.
    progress
        Called with the fraction done and a text.
    tell
        Is told in words what was done.
    """

    def __init__(self, cluster: Cluster, progress: Progress | None, tell: Tell) -> None:
        self._cluster = cluster
        self._progress = progress or (lambda done, text: None)
        self._tell = tell

    # -- ranks that are gone -----------------------------------------------------

    def heal(self, drop: bool) -> None:
        """See `Cluster.heal`."""
        self._heal(drop)
        self._progress(1.0, "healed")

    def _heal(self, drop: bool) -> None:
        cluster = self._cluster
        if not cluster.controller_runs:
            self._progress(0.0, "bringing the controller back")
            cluster.bring_back(self._progress)
            self._tell("the controller is back")
        gone, silent = self._missing()
        deadline = time.monotonic() + RETURN_SECONDS
        while silent and not drop and time.monotonic() < deadline:
            # TCP tries a connection again after as long as it has been cut.
            self._progress(0.05, f"waiting for {self._names(silent)} to answer")
            gone, silent = self._missing()
        if silent and not drop:
            raise ClusterError(
                f"{self._names(silent)} does not answer: type %mlx_dist heal again when its host "
                "is back, or %mlx_dist heal --drop to go on without it. Nothing was changed"
            )
        left = [rank for rank in range(cluster.size) if rank not in {*gone, *silent}]
        if not left:
            raise ClusterError("no rank is left to go on with: %mlx_dist restart starts all anew")
        if (gone or cluster.faults.reason) and not cluster.info.renewable:
            return self.rebuild(cluster.faults.reason or "ranks were gone", sorted(left))
        if drop and (gone or silent):
            self._free(left)
            return self._drop(left, sorted({*gone, *silent}))
        if gone:
            self._free(left)
            return self._start_again(gone, left)
        if cluster.faults.reason or self._broken(left):
            cluster.faults.reason = cluster.faults.reason or "the group was broken"
            self._free(left)
            return cluster.faults.mend(self._tell)
        if cluster.faults.owed:  # the heal before was broken off
            others = [rank for rank in left if rank not in cluster.faults.owed]
            counts = cluster.client.call("protected", others, ANSWER_SECONDS)
            return self._provide(others, common(counts))
        self._tell("all ranks are there, and the group is whole")

    def _missing(self) -> tuple[list[int], list[int]]:
        """Ranks whose process has ended, and those that do not answer."""
        client = self._cluster.client
        everyone = range(self._cluster.size)
        gone = sorted(set(everyone) - client.living())
        answers = client.call("progress", everyone, ANSWER_SECONDS)
        return gone, [rank for rank in everyone if rank not in gone and rank not in answers]

    def _broken(self, ranks: Sequence[int]) -> bool:
        groups = self._cluster.client.groups(ranks).values()
        return any(group["broken"] or group["refused"] for group in groups)

    def _names(self, ranks: Sequence[int]) -> str:
        infos = self._cluster.info.ranks
        return ", ".join(f"rank {rank} on {infos[rank].host}" for rank in ranks)

    def _free(self, ranks: Sequence[int]) -> None:
        """Free ranks from the old group and see that they are idle."""
        client = self._cluster.client
        client.call("release", ranks, ANSWER_SECONDS, reason=f"{RELEASED}: a rank is gone")
        states = self._cluster.faults.ended(ranks, SETTLE_SECONDS)
        if busy := [rank for rank, does in states.items() if does != "idle"]:
            raise ClusterError(
                f"{self._names(busy)} still runs a cell: %mlx_dist interrupt stops it, then "
                "type %mlx_dist heal again. Nothing was changed"
            )

    def _start_again(self, gone: Sequence[int], left: Sequence[int]) -> None:
        cluster, client = self._cluster, self._cluster.client
        info = cluster.info
        start = time.monotonic()
        self._progress(0.1, f"starting {self._names(gone)}")
        engines = [client.engine(rank) for rank in gone]
        client.ended.difference_update(engines)
        cluster.machinery.start_again(engines)
        deadline = time.monotonic() + info.options.timeout
        while not set(gone) <= client.living():
            cluster.machinery.raise_if_ended([client.engine(rank) for rank in gone])
            if time.monotonic() > deadline:
                raise ClusterError(f"{self._names(gone)} did not come up in time (--timeout)")
            time.sleep(0.02)  # registration has no event a client could wait for
        self._progress(0.6, "making the group anew")
        counts = client.call("protected", left, ANSWER_SECONDS)
        count = common(counts)
        forming = Forming(client, info.hosts, info.backend, info.options.timeout)
        calls: list[Any] = [
            (startup.join, (info.seed,)) if rank in gone else (recovering.rejoin_and_mend, (count,))
            for rank in range(info.size)
        ]
        found = forming.form(calls)
        number_link(client, range(info.size))
        self._note_ranks({rank: found[rank] for rank in gone})
        reason = cluster.faults.reason or f"rank {gone[0]} was gone"
        cluster.faults.reason = ""
        cluster.faults.owed.update(gone)
        mended = [found[rank] for rank in left]
        names = refuse(client, range(info.size), mended, reason)
        self._tell(f"{self._names(gone)} is back, {time.monotonic() - start:.1f} s")
        self._provide(left, count)
        for line in outcome(mended, names):
            self._tell(line)

    def _note_ranks(self, identities: dict[int, dict[str, Any]]) -> None:
        info = self._cluster.info
        ranks = list(info.ranks)
        for rank, who in identities.items():
            ranks[rank] = RankInfo(rank, who["host"], who["pid"], who["device"], who["mlx"])
        self._cluster.info = dataclasses.replace(info, ranks=tuple(ranks))
        self._cluster.info.save()

    def _provide(self, left: Sequence[int], count: int | None) -> None:
        """Give ranks that were started again what they lack; known until it is done."""
        owed = sorted(self._cluster.faults.owed)
        self._repeat_setup(owed)
        self._give_state(owed, left, count)
        self._cluster.faults.owed.clear()

    def _repeat_setup(self, ranks: Sequence[int]) -> None:
        """Run the set-up cells on ranks that have just started."""
        cluster = self._cluster
        cells = cluster.setup.cells
        for number, code in enumerate(cells):
            self._progress(0.7 + 0.1 * number / len(cells), "repeating the set-up cells")
            watch = GroupWatch(cluster.client, ranks, cluster.size, True)
            about = {"ranks": [] if len(ranks) == cluster.size else list(ranks)}
            run = CellRun(
                cluster.client, code, ranks, None, watch, cluster.doing, about, cluster.why_gone
            )
            first, *more = code.strip().splitlines()
            ours = first == OWN_CELL
            # To read a model takes as long as it takes.
            errors = run.wait(None if ours else cluster.info.options.timeout).errors
            for rank, error in errors.items():
                first = more[0].removeprefix("# ") if ours else first
                self._tell(
                    f"the set-up cell {first!r} failed on rank {rank}: {error['ename']}: "
                    f"{error['evalue']}"
                )
        if cells:
            self._tell(f"repeated there: {len(cells)} set-up cells and imports")

    def _give_state(self, ranks: Sequence[int], left: Sequence[int], count: int | None) -> None:
        """Copy the protected state of a healthy rank to ranks that lack it."""
        cluster, client = self._cluster, self._cluster.client
        if count is None:
            return
        self._progress(0.85, "copying the protected state")
        donor = left[0]
        (sharded,) = on(client, [donor], recovering.offer, count)
        transfer = Transfer(client, [donor], cluster.doing, None)
        state = transfer.pull([recovering.STATE])[donor][recovering.STATE]
        for name in sharded:
            del state[name]
        Transfer(client, ranks, cluster.doing, None).push({recovering.STATE: state})
        accepted = on(client, ranks, recovering.accept, count)
        on(client, [donor], recovering.forget)
        for rank, (names, said) in zip(ranks, accepted, strict=True):
            for line in said:
                self._tell(f"rank {rank}: {line}")
            if names:
                self._tell(
                    f"rank {rank} has no {', '.join(names)}: mark the cells that make and protect "
                    "them with %%mlx_dist --setup; their values were not copied"
                )
        if sharded:
            self._tell(
                f"{', '.join(sharded)} is sharded, and its part on {self._names(ranks)} is what "
                "the set-up cells made: load the weights again"
            )

    # -- fewer ranks -------------------------------------------------------------

    def _drop(self, left: Sequence[int], dropped: Sequence[int]) -> None:
        """Go on with the ranks that are left, under new numbers."""
        cluster, client = self._cluster, self._cluster.client
        info = cluster.info
        names = self._names(dropped)
        engines = [client.engine(rank) for rank in left]
        client.leave_behind([client.engine(rank) for rank in dropped])
        ranks = tuple(
            dataclasses.replace(info.ranks[old], rank=new) for new, old in enumerate(left)
        )
        hosts = tuple(info.hosts[old] for old in left)
        client.engines = engines
        cluster.info = info = dataclasses.replace(
            info, size=len(left), ranks=ranks, hosts=hosts, engines=tuple(engines)
        )
        info.save()
        reason = f"{names} was dropped"
        cluster.faults.reason = cluster.faults.reason or reason
        cluster.faults.mend(self._tell)
        numbers = ", ".join(f"{old} → {new}" for new, old in enumerate(left))
        self._tell(
            f"{names} is dropped; {len(left)} ranks are left, with new numbers ({numbers}): size "
            "and rank say so too"
        )

    def restart(self, ranks: Sequence[int]) -> None:
        """End ranks and start them anew; what is protected is copied from the others."""
        cluster = self._cluster
        if len(ranks) == cluster.size:
            return self.rebuild("restarted", cluster.living())
        cluster.client.call("leave", ranks, ANSWER_SECONDS)
        deadline = time.monotonic() + ANSWER_SECONDS
        while cluster.client.living() & set(ranks) and time.monotonic() < deadline:
            time.sleep(0.02)  # the end of another process is no event of this one
        cluster.faults.reason = cluster.faults.reason or f"rank {ranks[0]} was restarted"
        return cluster.heal(progress=self._progress, tell=self._tell)

    # -- all ranks anew ----------------------------------------------------------

    def rebuild(self, reason: str, living: Collection[int]) -> None:
        """Where ranks cannot be freed: save what is protected, start all anew, put it back.

        Parameters
        ----------
        reason
            What happened.
        living
            The ranks that are there.
        """
        cluster = self._cluster
        client = cluster.client
        folder = f"{RESCUE_FOLDER}/{cluster.id}-{secrets.token_hex(3)}"
        self._progress(0.05, "saving the protected state")
        counts = client.call("rescue", list(living), RESCUE_SECONDS, folder=folder)
        count = common(counts) if counts else None
        cells = cluster.setup.cells
        options, seed = cluster.info.options, cluster.info.seed
        options = dataclasses.replace(options, seed=options.seed or seed)
        cluster.down()
        cluster.replace(*BringUp(options, self._progress).run())
        cluster.setup.cells = cells
        cluster.setup.save(cluster.info.home)
        everyone = list(range(cluster.size))
        self._repeat_setup(everyone)
        self._tell(f"all ranks were started anew ({reason}): {LOST}")
        if count is not None:
            self._load(folder, count, sorted(counts), everyone)
        on(cluster.client, everyone, recovering.remove, folder)

    def _load(self, folder: str, count: int, saved: Sequence[int], everyone: Sequence[int]) -> None:
        client = self._cluster.client
        loaded = on(client, saved, recovering.load, folder, count)
        names = sorted({name for missing, _ in loaded for name in missing})
        if names:
            self._tell(
                f"{', '.join(names)} was saved, but no cell marked --setup makes it: it is lost"
            )
        without = [rank for rank in everyone if rank not in saved]
        if without:
            counts = client.call("protected", saved, ANSWER_SECONDS)
            self._give_state(without, saved, common(counts))
        said = outcome(on(client, saved, recovering.protected), ())
        for line in said:
            self._tell(line)
