"""`Cluster`: ranks of one MLX program, held by a notebook."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlxbench_kernel.cluster import state
from mlxbench_kernel.cluster.alone import check_alone
from mlxbench_kernel.cluster.bringup import BringUp
from mlxbench_kernel.cluster.cells import CellResult, CellRun
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.ending import end
from mlxbench_kernel.cluster.exchanging import Exchanging
from mlxbench_kernel.cluster.faults import Faults, Tell
from mlxbench_kernel.cluster.healing import Healing
from mlxbench_kernel.cluster.machinery import Machinery, Progress
from mlxbench_kernel.cluster.revival import Revival
from mlxbench_kernel.cluster.setup_cells import SetupCells
from mlxbench_kernel.cluster.sink import CellOutputSink
from mlxbench_kernel.cluster.state import ClusterInfo, Options
from mlxbench_kernel.cluster.turns import Turns, ignore
from mlxbench_kernel.cluster.watch import GroupWatch
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.interrupts import held

ANSWER_SECONDS = 2.0


class Cluster(Exchanging):
    """Ranks that are up; made by `Cluster.up` or `Cluster.attach`.

    Rank r is ipyparallel's engine id r, until `heal` has dropped ranks; `client` is the
    ipyparallel client, for what is not offered here.
    """

    _last: Callable[[], Cluster | None] = staticmethod(lambda: None)

    def __init__(self, info: ClusterInfo, machinery: Machinery, client: BenchClient) -> None:
        super().__init__(info, machinery, client)
        self.faults = Faults(self)
        self.setup = SetupCells(info.home)
        self.turns: Turns = getattr(self, "turns", None) or Turns()
        Cluster._last = weakref.ref(self)

    @classmethod
    def up(
        cls,
        n: int | None = None,
        *,
        hostfile: str | None = None,
        backend: str = "",
        env: Mapping[str, str] | None = None,
        python: str | None = None,
        timeout: float = 60.0,
        keep: bool = False,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> Cluster:
        """Start ranks and make them one group.

        Parameters
        ----------
        n
            Number of ranks; by default one per host of the hostfile, else 2.
        hostfile
            Path of a hostfile of ``mlx.launch``; without one all ranks are on this machine.
        backend
            ring, jaccl, jaccl-ring, nccl, mpi; "" or "any" takes the hostfile's, else what
            the hosts have.
        env
            Environment variables for the ranks, on top of the hostfile's.
        python
            Python on the hosts; by default the path of this one.
        timeout
            Seconds until all ranks must be up.
        keep
            Whether the ranks outlive this kernel.
        seed
            Random seed of all ranks; by default a random one, the same for all.
        progress
            Called with the fraction done and a text.

        Raises
        ------
        UsageError
            An argument or the hostfile is wrong; nothing was started.
        ClusterError
            A host or rank did not come up; what was started is stopped again.
        StorageError
            A disk did not take a file that is needed; what was started is stopped again.
        """
        options = Options(n, hostfile, backend, dict(env or {}), python, timeout, keep, seed)
        return cls(*BringUp(options, progress).run())

    @classmethod
    def latest(cls) -> Cluster:
        """The cluster that this process has started or attached to last.

        Raises
        ------
        UsageError
            There is none, or it is down.
        """
        found = cls._last()
        if found is None or found.client.closed:
            raise UsageError("no ranks are up: type %mlx_dist up -n 2")
        return found

    @classmethod
    def attach(cls, id: str, timeout: float = 10.0) -> Cluster:
        """Take over a cluster that runs on this machine, with all its variables.

        Raises
        ------
        UsageError
            There is no such cluster, or its notebook still holds it.
        ClusterError
            Its controller does not answer.
        StorageError
            The disk does not take a note of it; the cluster is as it was.
        """
        found = {info.id: info for info in state.running()}
        if id not in found:
            there = ", ".join(found) or "none is running"
            raise UsageError(f"there is no cluster {id!r}; %mlx_dist attach lists them: {there}")
        info = found[id]
        if info.owner_alive and info.owner != os.getpid():
            raise UsageError(
                f"cluster {id} belongs to a notebook that is running (process {info.owner}); "
                "there: %mlx_dist down, or restart its kernel if it was started with --keep"
            )
        machinery = Machinery.reopen(info.home)
        if machinery.controller_running():
            client = machinery.connect(timeout)
        else:
            client, _ = Revival(machinery, None).run()
        info = dataclasses.replace(info, owner=os.getpid(), owner_started=state.process_started())
        try:
            info.save()
        except BaseException:
            client.close(linger=0)
            raise
        return cls(info, machinery, client)

    @staticmethod
    def running() -> list[ClusterInfo]:
        """The clusters of this user on this machine."""
        return list(state.running())

    def __repr__(self) -> str:
        return f"<Cluster {self.id}: {self.size} ranks, {self.info.backend}>"

    # -- cells ---------------------------------------------------------------

    def execute(
        self,
        code: str,
        *,
        ranks: Iterable[int] | None = None,
        timeout: float | None = None,
        output: CellOutputSink | None = None,
        name: str = "",
        shift: int = 0,
        setup: bool = False,
        tell: Tell = lambda text: None,
    ) -> CellResult:
        """Run a cell on ranks and wait for it.

        Parameters
        ----------
        code
            Source of the cell, magics included.
        ranks
            Where; all by default.
        timeout
            Seconds to wait at most. Nothing is aborted then.
        output
            Where its output goes.
        name, shift
            What the user calls the cell, as ``Cell In[3]``, and what its line numbers lack.
        setup
            Whether it is repeated on ranks that start later.
        tell
            Is told in words what was done about a fault.

        Returns
        -------
        CellResult
            With the errors of ranks that raised; none is raised here.

        Raises
        ------
        UsageError
            A rank does not exist, or the cell is for some ranks and calls a collective of all.
        ClusterError
            A rank is gone.
        CellTimeout
            Time is up; the message says who is doing what.
        CollectiveMismatch
            The ranks disagree on a collective.
        """
        chosen = self.choose(ranks)
        if len(chosen) < self.size:
            check_alone(code, chosen, shift)
        self._require(chosen)
        refresh = ignore if output is None else output.refresh
        with self.between(refresh), self.turns.taken(refresh):
            everywhere = len(chosen) == self.size
            self.faults.wait(tell, refresh)
            watch = GroupWatch(self.client, chosen, self.size, self.info.renewable)
            about: dict[str, Any] = {"ranks": [] if everywhere else chosen}
            if name:
                about |= {"name": name, "shift": shift}
            run = CellRun(
                self.client, code, chosen, output, watch, self.doing, about, self.why_gone
            )
            good = False
            try:
                result = run.wait(timeout)
                good = not result.errors
                if good and everywhere:
                    self.setup.note(code, setup)
                return result
            finally:
                if not good and not run.left_running:
                    with held():
                        self._see_to(run, watch, tell)

    def _see_to(self, run: CellRun, watch: GroupWatch, tell: Tell) -> None:
        """After a cell that did not end well: mend the group if it was damaged."""
        if self.size == 1:
            return
        if watch.is_damaged() or len(self.living()) < self.size:
            self.faults.reason = self.faults.reason or run.fault()
            self.faults.stuck |= watch.stuck
            self.faults.mend(tell)
        else:
            self.faults.level(run.fault(), run.failed_alike(), tell)

    def interrupt(
        self, ranks: Iterable[int] | None = None, tell: Tell = lambda text: None
    ) -> dict[str, list[int]]:
        """Raise KeyboardInterrupt in the cells that ranks are running; free blocked ones.

        Parameters
        ----------
        ranks
            Where; all by default.
        tell
            Is told in words when the group had to be made anew.

        Returns
        -------
        dict
            What became of it, with the ranks: "interrupted", "was idle", or what they still do.
        """
        chosen = self.choose(ranks)
        was_busy = self.client.call("interrupt", chosen, timeout=ANSWER_SECONDS)
        states = self.faults.free("interrupted", was_busy)
        late = [rank for rank in was_busy if was_busy[rank] and states[rank] != "idle"]
        self.faults.mend(tell)
        if self.size > 1 and any(was_busy.values()) and not self.faults.reason:
            self.faults.level("interrupted", False, tell)
        found: dict[str, list[int]] = {}
        for rank, does in states.items():
            if does == "idle":
                said = "interrupted" if was_busy.get(rank) else "was idle"
            elif rank in late:
                said = (
                    f"{does}; what MLX computes ends before it stops (%mlx_dist restart --ranks "
                    f"{rank} gives it up)"
                )
            else:
                said = does
            found.setdefault(said, []).append(rank)
        return found

    # -- life ----------------------------------------------------------------

    def bring_back(self, progress: Progress | None = None) -> list[int]:
        """Start the controller again after it was killed; the ranks come back under their ids.

        Those that run a cell go on. `client` is a new one afterwards. Returns the ranks that
        did not come back.
        """
        with held():
            self.client.close(linger=0)  # it would tell the new controller old news
            self.client, silent = Revival(self.machinery, progress).run()
            self.client.engines = list(self.info.engines)
        return silent

    def heal(
        self, drop: bool = False, progress: Progress | None = None, tell: Tell = lambda text: None
    ) -> None:
        """Bring back what a fault has taken: the controller, ranks that died, the group.

        A rank that died is started again on its host under its number; the set-up cells are
        repeated there, and what is protected is copied from a healthy rank.

        Parameters
        ----------
        drop
            Go on without ranks that are gone or do not answer; the others get new numbers.
        progress
            Called with the fraction done and a text.
        tell
            Is told in words what was done.

        Raises
        ------
        ClusterError
            It cannot be done now; says why.
        """
        with self.between():
            Healing(self, progress, tell).heal(drop)

    def rebuild(self, reason: str, tell: Tell) -> None:
        """Start all ranks anew, with what is protected; see `Healing.rebuild`."""
        Healing(self, None, tell).rebuild(reason, self.living())

    def restart(
        self,
        ranks: Iterable[int] | None = None,
        progress: Progress | None = None,
        tell: Tell = lambda text: None,
    ) -> None:
        """End ranks and start them anew; their variables are lost.

        Parameters
        ----------
        ranks
            Which ones; the others keep their variables, and what is protected is copied from
            them. By default all, with the arguments of `up`; then nothing is repeated.
        progress
            Called with the fraction done and a text.
        tell
            Is told in words what was done.
        """
        if ranks is not None:
            chosen = self.choose(ranks)
            self._require_controller()
            return Healing(self, progress, tell).restart(chosen)
        options, cells = self.info.options, self.setup.cells
        self.down()
        if cells:
            tell("not repeated on fresh ranks: set-up cells and imports; run those cells again")
        self.replace(*BringUp(options, progress).run())

    def replace(self, info: ClusterInfo, machinery: Machinery, client: BenchClient) -> None:
        """Go on with ranks that were started anew."""
        self.__init__(info, machinery, client)  # type: ignore[misc]

    def down(self) -> list[str]:
        """End all ranks; no process and no file is left.

        Returns
        -------
        list of str
            A line for each host where that could not be done.
        """
        self.background.ended()
        return end(self.info.home, self.machinery, self.client, range(self.size))
