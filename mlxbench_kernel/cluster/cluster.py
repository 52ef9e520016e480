"""`Cluster`: ranks of one MLX program, held by a notebook."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxbench_kernel.cluster import hosts, state
from mlxbench_kernel.cluster.bringup import BringUp
from mlxbench_kernel.cluster.cells import CellOutputSink, CellResult, CellRun
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.machinery import Machinery, Progress
from mlxbench_kernel.cluster.state import SILENT, ClusterInfo, Options, RankInfo
from mlxbench_kernel.cluster.transfer import Transfer
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.interrupts import held
from mlxbench_kernel.memory import MemorySample

ANSWER_SECONDS = 2.0
SILENT_SECONDS = 1.0  # after which a rank that is asked what it does is called silent
SETTLE_SECONDS = 1.0  # that an interrupted cell may take to end


class Cluster:
    """Ranks that are up; made by `Cluster.up` or `Cluster.attach`.

    Rank r is always ipyparallel's engine id r; `client` is the ipyparallel client, for what
    is not offered here.
    """

    def __init__(self, info: ClusterInfo, machinery: Machinery, client: BenchClient) -> None:
        self.info = info
        self.client = client
        self._machinery = machinery

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
        """
        options = Options(n, hostfile, backend, dict(env or {}), python, timeout, keep, seed)
        return cls(*BringUp(options, progress).run())

    @classmethod
    def attach(cls, id: str, timeout: float = 10.0) -> Cluster:
        """Take over a cluster that runs on this machine, with all its variables.

        Raises
        ------
        UsageError
            There is no such cluster, or its notebook still holds it.
        ClusterError
            Its controller does not answer.
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
        client = machinery.connect(timeout)
        info = dataclasses.replace(info, owner=os.getpid(), owner_started=state.process_started())
        info.save()
        return cls(info, machinery, client)

    @staticmethod
    def running() -> list[ClusterInfo]:
        """The clusters of this user on this machine."""
        return list(state.running())

    @property
    def id(self) -> str:
        """Name of the cluster, unique on this machine."""
        return self.info.id

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.info.size

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

        Returns
        -------
        CellResult
            With the errors of ranks that raised; none is raised here.

        Raises
        ------
        UsageError
            A rank does not exist.
        ClusterError
            A rank is gone.
        CellTimeout
            Time is up; the message says who is doing what.
        """
        chosen = self.choose(ranks)
        self._require(chosen)
        return CellRun(self.client, code, chosen, output, self.doing).wait(timeout)

    def choose(self, ranks: Iterable[int] | None) -> list[int]:
        """The ranks, checked and in order; all of them for None."""
        if ranks is None:
            return list(range(self.size))
        chosen = sorted(set(ranks))
        for rank in chosen:
            if not 0 <= rank < self.size:
                raise UsageError(f"there is no rank {rank}: ranks are 0 to {self.size - 1}")
        return chosen

    def _require(self, ranks: Sequence[int]) -> None:
        self._require_controller()
        gone = sorted(set(ranks) - set(self.client.ids))
        if gone:
            who = self.info.ranks[gone[0]]
            raise ClusterError(
                f"rank {gone[0]} on {who.host} is gone (process {who.pid}): %mlx_dist restart "
                "starts all ranks anew, %mlx_dist log shows its last words"
            )

    def _require_controller(self) -> None:
        if not self._machinery.controller_running():
            raise ClusterError(
                f"the controller of cluster {self.id} is gone, and without it the ranks leave by "
                "themselves: %mlx_dist restart starts all anew"
            )

    def results(self, ranks: Iterable[int] | None = None) -> dict[int, Any]:
        """Value of the last expression of each rank's last cell.

        Returns
        -------
        dict
            By rank; None where the cell ended with no expression, its text where the value
            cannot be sent.
        """
        return self._transfer(ranks).results()

    def interrupt(self, ranks: Iterable[int] | None = None) -> dict[str, list[int]]:
        """Raise KeyboardInterrupt in the cells that ranks are running.

        Returns
        -------
        dict
            What became of it, with the ranks: "interrupted", "was idle", or what they still do.
        """
        chosen = self.choose(ranks)
        was_busy = self.client.call("interrupt", chosen, timeout=ANSWER_SECONDS)
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            states = self.doing(chosen)
            late = [rank for rank in was_busy if was_busy[rank] and states[rank] != "idle"]
            if not late or time.monotonic() > deadline:
                break
            time.sleep(0.05)  # the end of a cell that others wait for is no event here
        found: dict[str, list[int]] = {}
        for rank, does in states.items():
            if does == "idle":
                said = "interrupted" if was_busy.get(rank) else "was idle"
            elif rank in late:
                said = f"{does}; inside MLX it stops only when that ends (%mlx_dist restart)"
            else:
                said = does
            found.setdefault(said, []).append(rank)
        return found

    # -- looking -------------------------------------------------------------

    def status(self) -> list[RankInfo]:
        """All ranks with their memory and what they are doing, also while a cell runs."""
        self._require_controller()
        samples = self.client.call("sample", range(self.size), timeout=ANSWER_SECONDS)
        living = set(self.client.ids)
        ranks = []
        for info in self.info.ranks:
            sample = samples.get(info.rank)
            if sample is None:
                state = self._missing(info.rank, living)
                ranks.append(dataclasses.replace(info, state=state))
            else:
                memory = MemorySample(**sample["memory"])
                ranks.append(dataclasses.replace(info, memory=memory, state=_doing(sample)))
        return ranks

    def doing(self, ranks: Sequence[int]) -> dict[int, str]:
        """What ranks are doing; those that do not answer are silent, or gone.

        Returns
        -------
        dict
            By rank, as `RankInfo.state` says it.
        """
        self._require_controller()
        samples = self.client.call("sample", ranks, timeout=SILENT_SECONDS)
        living = set(self.client.ids)
        return {
            rank: _doing(samples[rank]) if rank in samples else self._missing(rank, living)
            for rank in ranks
        }

    def _missing(self, rank: int, living: Collection[int]) -> str:
        """State of a rank that does not answer."""
        if rank not in living:
            return "gone"
        return f"{SILENT} {self.client.silence(rank):.0f} s ({self._machinery.host(rank)})"

    def complete(self, code: str, cursor: int, timeout: float = 0.5) -> tuple[int, list[str]]:
        """Completions in the namespace of rank 0.

        Returns
        -------
        start, matches
            The matches replace ``code[start:cursor]``.
        """
        answer = self.client.call("complete", [0], timeout, code=code, cursor=cursor).get(0)
        return (answer["start"], answer["matches"]) if answer else (cursor, [])

    def logs(self, ranks: Iterable[int] | None = None, lines: int = 40) -> dict[int, str]:
        """The last lines that the processes of ranks wrote outside of cells."""
        return {rank: self._machinery.rank_log(rank, lines) for rank in self.choose(ranks)}

    # -- data ----------------------------------------------------------------

    def push(
        self,
        values: Mapping[str, Any],
        ranks: Iterable[int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Put values into the namespaces of ranks; see `Transfer.push`."""
        self._transfer(ranks, progress).push(values)

    def pull(
        self,
        names: str | Sequence[str],
        ranks: Iterable[int] | None = None,
        progress: Progress | None = None,
    ) -> dict[int, Any]:
        """Fetch variables from ranks; see `Transfer.pull`.

        Returns
        -------
        dict
            For each rank the value, or for several names a dict of values by name.
        """
        transfer = self._transfer(ranks, progress)
        if isinstance(names, str):
            return {rank: values[names] for rank, values in transfer.pull([names]).items()}
        return transfer.pull(names)

    def _transfer(self, ranks: Iterable[int] | None, progress: Progress | None = None) -> Transfer:
        chosen = self.choose(ranks)
        self._require(chosen)
        return Transfer(self.client, chosen, self.doing, progress)

    # -- life ----------------------------------------------------------------

    def restart(self, progress: Progress | None = None) -> None:
        """End all ranks and start them anew, with the arguments of `up`; variables are lost."""
        options = self.info.options
        self.down()
        fresh = BringUp(options, progress).run()
        self.info, self._machinery, self.client = fresh

    def down(self) -> list[str]:
        """End all ranks; no process and no file is left.

        Returns
        -------
        list of str
            A line for each host where that could not be done.
        """
        return end(self.info.home, self._machinery, self.client, range(self.size))


def end(
    home: Path, machinery: Machinery, client: BenchClient | None, ranks: Iterable[int]
) -> list[str]:
    """Stop a cluster, also one that is only half up, and remove its folder; see `Cluster.down`.

    A Ctrl-C meanwhile is raised afterwards.
    """
    with held():
        return _end(home, machinery, client, ranks)


def _end(
    home: Path, machinery: Machinery, client: BenchClient | None, ranks: Iterable[int]
) -> list[str]:
    try:
        if client is not None:
            client.call("leave", list(ranks), timeout=1.0)
            deadline = time.monotonic() + ANSWER_SECONDS
            while client.ids and machinery.engines_running() and time.monotonic() < deadline:
                time.sleep(0.02)  # the ends of other processes are no event of this one
        left = hosts.clean(machinery.plans)
        machinery.stop()
    finally:
        if client is not None:
            client.close(linger=0)
        shutil.rmtree(home, ignore_errors=True)
    return left


def _doing(sample: Mapping[str, Any]) -> str:
    if sample["state"] == "idle":
        return "idle"
    where = f" · line {sample['line']}: {sample['source']}" if sample["line"] else ""
    return f"busy {sample['seconds']:.0f} s{where}"
