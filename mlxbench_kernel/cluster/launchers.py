"""ipyparallel launchers for ranks: local processes, processes over ssh, and mpirun.

Each gives rank r the engine id r and its own environment, and starts all ranks at once
(ipyparallel waits between them, and starts those over ssh one after the other).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import psutil
from ipyparallel.cluster.launcher import (
    LocalControllerLauncher,
    LocalEngineLauncher,
    LocalEngineSetLauncher,
    MPIEngineSetLauncher,
)
from traitlets import Dict, List, Unicode

from mlxbench_kernel.cluster.deaths import Death
from mlxbench_kernel.cluster.ssh_rank import KEYS_VARIABLE, SSHRankLauncher, give_keys

RANK_MODULE = "mlxbench_kernel.rank"


class ControllerLauncher(LocalControllerLauncher):  # type: ignore[misc]
    """Starts `mlxbench_kernel.cluster.controller`."""

    controller_cmd = List([sys.executable, "-m", "mlxbench_kernel.cluster.controller"])


class LocalRankLauncher(LocalEngineLauncher):  # type: ignore[misc]
    """One rank on this machine, whose end its set is told at once.

    It has no nanny, the second process that ipyparallel starts beside each engine and that
    takes as long to come up. What a nanny is for is done here without: its host is this
    machine, so that `signal` reaches the process, and its end is waited for anyway.
    """

    def _wait(self) -> None:
        super()._wait()
        try:
            code = self.process.wait(0)  # it is known already; None where it is no child of ours
        except psutil.TimeoutExpired:  # it was only the waiting that ended
            return
        death = Death.here(code, str(PurePosixPath(self.output_file).parent))
        self.parent.note_death(int(self.identifier), self.pid, death)
        self.parent.tell_ended(int(self.identifier))


class _Kept:
    """Makes a launcher again from what ipyparallel kept of it."""

    @staticmethod
    def from_dict(kept: dict[str, Any], **kwargs: Any) -> LocalEngineLauncher:
        launcher = SSHRankLauncher if "ssh_cmd" in kept else LocalRankLauncher
        return launcher.from_dict(kept, **kwargs)


class RankSetLauncher(LocalEngineSetLauncher):  # type: ignore[misc]
    """Starts one engine per rank, here or over ssh, as `ranks` says."""

    launcher_class = _Kept
    ranks = List(Dict(), help="For each rank: ssh, python, folder, work_dir, environment.")
    on_end: Callable[[int], None] | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._deaths: dict[int, tuple[int, Death]] = {}
        self._died = threading.Condition()

    def note_death(self, rank: int, pid: int, death: Death) -> None:
        """Keep how a process has ended; called in a thread of its own."""
        with self._died:
            self._deaths[rank] = pid, death
            self._died.notify_all()

    def death(self, rank: int, pid: int, timeout: float) -> Death | None:
        """How the process `pid` of a rank has ended.

        Parameters
        ----------
        rank, pid
            The rank; started anew under the same number, it is another process.
        timeout
            Seconds to wait for the news, which come late from another host.
        """
        with self._died:
            known = self._died.wait_for(lambda: self._deaths.get(rank, (0,))[0] == pid, timeout)
            return self._deaths[rank][1] if known else None

    def tell_ended(self, rank: int) -> None:
        """The process of a rank has ended; called in a thread of its own."""
        if self.on_end is not None:
            self.on_end(rank)

    def _notice_engine_stopped(self, data: dict[str, Any]) -> None:
        # Kept before ipyparallel takes the launcher out: somebody may be asking for it now.
        launcher = self.launchers[data["identifier"]]
        self.outputs[data["identifier"]] = launcher.get_output()
        super()._notice_engine_stopped(data)

    def start(self, n: int) -> list[Any]:
        self.n = n
        launchers = self.start_ranks(range(n))
        self.notify_start([launcher.pid for launcher in launchers])
        return launchers

    def start_ranks(self, ranks: Iterable[int]) -> list[Any]:
        """Start ranks, in place of processes that have ended."""
        launchers = []
        for rank in ranks:
            self.launchers[str(rank)] = launcher = self._launcher(rank, self.ranks[rank])
            launchers.append(launcher)
        with ThreadPoolExecutor(max(len(launchers), 1)) as pool:
            # `loop` is taken from the current thread: ask for it in this one.
            for launcher in launchers:
                launcher.loop = self.loop
                launcher.on_stop(self._notice_engine_stopped)
            list(pool.map(lambda launcher: launcher.start(), launchers))
        return launchers

    def _launcher(self, rank: int, plan: dict[str, Any]) -> LocalEngineLauncher:
        common = {
            "parent": self,
            "log": self.log,
            "cluster_id": self.cluster_id,
            "identifier": str(rank),
            "environment": {**self.environment, **plan["environment"]},
        }
        arguments = rank_arguments(plan, rank)
        if not plan["ssh"]:
            common["environment"].pop(KEYS_VARIABLE, None)  # the rank reads the controller's file
            return LocalRankLauncher(
                **common,
                profile_dir=self.profile_dir,
                work_dir=plan["work_dir"],
                engine_cmd=[plan["python"], "-m", RANK_MODULE],
                engine_args=[*arguments, "--RankEngine.enable_nanny=False"],
                output_file=str(PurePosixPath(plan["folder"]) / "rank.log"),
            )
        launcher = SSHRankLauncher(
            **common,
            remote_python=plan["python"],
            command=[plan["python"], "-m", RANK_MODULE, *arguments],
            connection=plan["connection"],
            remote_output_file=str(PurePosixPath(plan["folder"]) / "rank.log"),
        )
        launcher.hostname = plan["ssh"]
        launcher.remote_profile_dir = plan["folder"]
        return launcher


class MPIRankSetLauncher(MPIEngineSetLauncher):  # type: ignore[misc]
    """Starts all ranks with one mpirun; each takes its engine id from MPI."""

    command = List(Unicode(), help="mpirun with its options.")
    ranks: Any = List(help="A plan for each rank, see `Machinery.create`.")

    def start(self, n: int) -> Any:
        """Start all ranks; the keys go to other hosts by a file of each rank, not by mpirun."""
        keys = self.environment.pop(KEYS_VARIABLE, "")
        give_keys([plan for plan in self.ranks if plan["ssh"]], keys)
        return super().start(n)

    def find_args(self) -> list[str]:
        # ipyparallel would add --mpi, for which the rank needs mpi4py.
        return [*self.command, *self.engine_cmd, *self.engine_args]


def rank_arguments(plan: dict[str, Any], rank: int | None) -> list[str]:
    """Command line of a rank.

    Parameters
    ----------
    plan
        Its plan, see `Machinery.create`.
    rank
        Its rank; None under mpirun, where MPI says it.
    """
    arguments = [
        f"--RankEngine.scratch={plan['folder']}",
        f"--profile-dir={plan['folder']}",
        f"--work-dir={plan['work_dir']}",
        "--RankEngine.auto_create=True",
        "--RankEngine.timeout=30",
        "--RankEngine.max_heartbeat_misses=1",  # with 0 it would not listen to heartbeats
        *plan["lifetime"],
    ]
    arguments.append(f"--RankEngine.url_file={plan['connection']}")
    if rank is not None:
        arguments.append(f"--RankEngine.id={rank}")
    return arguments


# A rank registers at its first heartbeat, so beats come often. None that is missed has a
# consequence; after 50 in a row the controller stops counting them, and its log stays short.
HEARTBEAT_MS = 200
CONTROLLER_MISSES = 50
