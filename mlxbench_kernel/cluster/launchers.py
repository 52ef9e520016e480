"""ipyparallel launchers for ranks: local processes, processes over ssh, and mpirun.

Each gives rank r the engine id r and its own environment, and starts all ranks at once
(ipyparallel waits between them, and starts those over ssh one after the other).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from ipyparallel.cluster.launcher import (
    LocalControllerLauncher,
    LocalEngineLauncher,
    LocalEngineSetLauncher,
    MPIEngineSetLauncher,
)
from traitlets import Dict, List, Unicode

from mlxbench_kernel.cluster.ssh_rank import KEYS_VARIABLE, SSHRankLauncher

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

    def tell_ended(self, rank: int) -> None:
        """A local process has ended; called in a thread of its own."""
        if self.on_end is not None:
            self.on_end(rank)

    def _notice_engine_stopped(self, data: dict[str, Any]) -> None:
        # Kept before ipyparallel takes the launcher out: somebody may be asking for it now.
        launcher = self.launchers[data["identifier"]]
        self.outputs[data["identifier"]] = launcher.get_output()
        super()._notice_engine_stopped(data)

    def start(self, n: int) -> list[Any]:
        self.n = n
        for rank, plan in enumerate(self.ranks):
            self.launchers[str(rank)] = self._launcher(rank, plan)
        launchers = list(self.launchers.values())
        with ThreadPoolExecutor(max(len(launchers), 1)) as pool:
            # `loop` is taken from the current thread: ask for it in this one.
            for launcher in launchers:
                launcher.loop = self.loop
                launcher.on_stop(self._notice_engine_stopped)
            list(pool.map(lambda launcher: launcher.start(), launchers))
        self.notify_start([launcher.pid for launcher in launchers])
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
        f"--RankEngine.max_heartbeat_misses={HEARTBEAT_MISSES}",
    ]
    if rank is not None or not plan["ssh"]:  # mpirun hands the environment to other hosts instead
        arguments.append(f"--RankEngine.url_file={plan['connection']}")
    if rank is not None:
        arguments.append(f"--RankEngine.id={rank}")
    return arguments


# The controller beats every 0.2 s and a rank looks every 0.7 s (ipyparallel adds 0.5 s): a
# rank without a controller leaves after 10 s, and a pause of the network shorter than that
# costs nothing.
HEARTBEAT_MS = 200
HEARTBEAT_MISSES = 80
CONTROLLER_MISSES = 280
