"""ipyparallel's own cluster, set up for ranks: one controller, one engine per rank."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipyparallel
from traitlets import Dict, List, Unicode

from mlxbench_kernel.cluster import launchers, lifetime
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.deaths import Death
from mlxbench_kernel.cluster.ssh_rank import SSHRankLauncher
from mlxbench_kernel.cluster.state import controller_lives, note_controller, process_started
from mlxbench_kernel.errors import ClusterError

Progress = Callable[[float, str], None]


class Machinery(ipyparallel.Cluster):  # type: ignore[misc]
    """ipyparallel's cluster with the launchers of this package.

    Starts the ranks without waiting for the controller where they can read its file.
    """

    @classmethod
    def create(
        cls,
        home: Path,
        plans: Sequence[dict[str, Any]],
        *,
        mpirun: list[str] | None,
        keep: bool,
        listen: str,
    ) -> Machinery:
        """A cluster that is not started yet.

        Parameters
        ----------
        home
            Its private folder; the folder's name is the cluster's id.
        plans
            For each rank ``ssh`` ("" for a local process), ``python``, ``folder``,
            ``work_dir``, ``connection`` (file with the controller's address and keys; ranks of
            mpirun get them another way) and ``environment``.
        mpirun
            Command that starts all ranks, for backend mpi.
        keep
            Whether it outlives this process.
        listen
            Address of this machine that the hosts reach; "" when all ranks are local. With
            one, everything is encrypted by CurveZMQ.
        """
        for plan in plans:
            plan["lifetime"] = lifetime.arguments(plan, keep)
            plan["keep"] = keep
        arguments = [
            f"--HeartMonitor.period={launchers.HEARTBEAT_MS}",
            f"--HeartMonitor.max_heartmonitor_misses={launchers.CONTROLLER_MISSES}",
            # The hub would keep a copy of every message, arrays included.
            "--BenchController.db_class=NoDB",
            "--BenchController.use_threads=True",
            "--BenchController.broadcast_scheduler_depth=0",
            "--TaskScheduler.scheme_name=none",
        ]
        if not keep:
            arguments.append(f"--BenchController.owner={os.getpid()}")
            arguments.append(f"--BenchController.owner_started={process_started()}")
        if listen:
            arguments.append("--BenchController.enable_curve=True")
        self = cls(
            cluster_id=home.name,
            profile_dir=str(home),
            load_profile=False,
            parent=None,
            log=_log(),
            delay=0.0,
            controller_launcher_class=launchers.ControllerLauncher,
            engine_launcher_class=(
                launchers.MPIRankSetLauncher if mpirun else launchers.RankSetLauncher
            ),
            controller_args=arguments,
            controller_ip=listen,
            controller_location=listen,
            send_engines_connection_env=bool(listen),
            shutdown_atexit=False,
        )
        self.plans = list(plans)
        self.mpirun = mpirun
        return self

    controller: Any
    plans = List(Dict()).tag(to_dict=True)
    mpirun: Any = List(Unicode(), allow_none=True, default_value=None).tag(to_dict=True)

    @classmethod
    def reopen(cls, home: Path) -> Machinery:
        """The cluster that runs in `home`, from the file that ipyparallel keeps of it.

        ipyparallel abbreviates launchers as ``module:Class``, which it cannot read again.
        """
        text = (home / "security" / f"cluster-{home.name}.json").read_text()
        prefix = launchers.__name__
        text = text.replace(f"{prefix}:", f"{prefix}.")
        state = json.loads(text)
        kept: Machinery = cls.from_dict(state, load_profile=False, parent=None, log=_log())
        if not controller_lives(home):  # another process may have its number
            kept.controller = None
        if isinstance(kept.engine_set, launchers.RankSetLauncher):
            kept.engine_set.ranks = kept.plans  # which it does not keep: to start them again
        return kept

    def bring_controller_back(self) -> None:
        """Start a controller in place of one that has ended, on its ports, with its keys."""
        self.controller = None
        self._start_controller(
            controller_args=[
                "--BenchController.reuse_files=True",
                "--BenchController.restore_engines=True",
            ]
        )

    def _start_controller(self, **options: Any) -> None:
        self.start_controller_sync(**options)
        note_controller(Path(self.profile_dir), self.controller.pid)

    def launch(self) -> None:
        """Start the controller and all ranks; returns before they are up."""
        self._start_controller()
        if self.mpirun is None:
            self.start_engines_sync(len(self.plans), ranks=self.plans)
            return
        plan = self.plans[0]
        self.start_engines_sync(
            len(self.plans),
            command=self.mpirun,
            engine_cmd=[plan["python"], "-m", launchers.RANK_MODULE],
            engine_args=launchers.rank_arguments(plan, None),
            environment=plan["environment"],
            ranks=self.plans,
        )

    def connect(self, timeout: float) -> BenchClient:
        """A client of the controller, once that has written its connection files.

        Raises
        ------
        ClusterError
            The controller did not start; the last lines of its log are in the message.
        """
        try:
            info = self._synchronize(self.controller.get_connection_info, timeout)
        except (TimeoutError, RuntimeError):
            tail = self.controller_log(10)
            raise ClusterError(
                f"the ipyparallel controller did not start in time; --timeout S "
                f"allows more\n{tail}".rstrip()
            ) from None
        client = BenchClient(info["client"], profile_dir=self.profile_dir, timeout=timeout)
        if isinstance(self.engine_set, launchers.RankSetLauncher):
            self.engine_set.on_end = client.unregister
        return client

    def address(self) -> str:
        """``"ip:port"`` at which ranks register with the controller."""
        info = self._engine_info()
        return f"{info['interface'].removeprefix('tcp://')}:{info['registration']}"

    def engine_ports(self) -> list[int]:
        """Ports of the controller to each of which every rank has one connection of its own."""
        info = self._engine_info()
        return [int(info[name]) for name in ("mux", "iopub")]

    def _engine_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._synchronize(self.controller.get_connection_info)["engine"]
        return info

    def controller_log(self, lines: int) -> str:
        """The last `lines` lines of the controller's log."""
        self.controller._output = None  # it keeps what it read once
        return "\n".join(self.controller.get_output().strip().splitlines()[-lines:])

    def wait_for_ranks(
        self, client: BenchClient, deadline: float, progress: Callable[[int], None]
    ) -> None:
        """Wait until every rank has registered.

        Parameters
        ----------
        deadline
            On the clock of `time.monotonic`.
        progress
            Called with the number of ranks that are there.

        Raises
        ------
        ClusterError
            A rank ended while starting (the last lines of its log are in the message), or
            the deadline has passed.
        """
        size = len(self.plans)
        there = -1
        while True:
            ids = set(client.ids)
            if len(ids) != there:
                there = len(ids)
                progress(there)
            if there == size:
                return
            self.raise_if_ended()
            if time.monotonic() > deadline:
                late = sorted(set(range(size)) - ids)
                raise ClusterError(
                    f"rank {late[0]} on {self.host(late[0])} did not come up in time: it may be "
                    "slow (--timeout 120), or cannot reach this machine (%mlx_dist doctor)"
                )
            time.sleep(0.02)  # registration has no event a client could wait for

    def start_again(self, ranks: Sequence[int]) -> None:
        """Start ranks whose processes have ended, as they were started at first."""
        for rank in ranks:
            if not self.plans[rank]["ssh"]:
                Path(self.plans[rank]["folder"]).mkdir(mode=0o700, exist_ok=True)
        self.engine_set.start_ranks(ranks)

    def raise_if_ended(self, ranks: Sequence[int] | None = None) -> None:
        """Raise the last words of a rank that has ended while it was starting."""
        found = self._launchers()
        for rank in range(len(self.plans)) if ranks is None else ranks:
            launcher = found.get(rank)
            if not _runs(launcher):
                what = f"rank {rank} on {self.host(rank)}" if self.mpirun is None else "mpirun"
                tail = self.rank_log(rank, 12) or "(it wrote no log)"
                raise ClusterError(f"{what} ended while starting:\n{tail}")

    def _launchers(self) -> dict[int, Any]:
        """The launcher of each rank; under mpirun one launcher stands for all.

        Where this process has a running event loop, ipyparallel takes those out that ended.
        """
        engines = self.engine_set
        if engines is None:
            return {}
        if self.mpirun is not None:
            return dict.fromkeys(range(len(self.plans)), engines)
        return {int(rank): launcher for rank, launcher in engines.launchers.items()}

    def host(self, rank: int) -> str:
        """Name of the host of `rank`, as the hostfile has it."""
        return self.plans[rank]["ssh"] or "this machine"

    def controller_running(self) -> bool:
        """Whether the controller's process is still there."""
        return _runs(self.controller)

    def engines_running(self) -> bool:
        """Whether a process of a rank, or mpirun, is still there."""
        return any(map(_runs, self._launchers().values()))

    def ended(self) -> list[int]:
        """Ranks whose process is known to have ended."""
        found = self._launchers()
        return [rank for rank in range(len(self.plans)) if not _runs(found.get(rank))]

    def rank_log(self, rank: int, lines: int) -> str:
        """The last `lines` lines of a rank's log; under mpirun all ranks write the same one."""
        launcher = self._launchers().get(rank)
        if launcher is None:
            text = self.engine_set.outputs.get(str(rank), "")
        else:
            if _runs(launcher):
                launcher._output = None  # it keeps what it read once
            text = launcher.get_output()
        return "\n".join(text.strip().splitlines()[-lines:])

    def death(self, rank: int, pid: int, timeout: float) -> Death:
        """How the process `pid` of a rank has ended, as far as that is known; see `Death`.

        Parameters
        ----------
        rank, pid
            Rank and process.
        timeout
            Seconds to wait for what its host says of it.
        """
        engines = self.engine_set
        if isinstance(engines, launchers.RankSetLauncher):
            found = engines.death(rank, pid, timeout)
            if found is not None:
                return found
        plan = self.plans[rank]
        return Death() if plan["ssh"] else Death.here(None, plan["folder"])

    def let_go(self) -> None:
        """Watch no rank on another host any more once its present connection has ended.

        Before `hosts.clean`: what began to watch after that would be left on the host a while.
        """
        for launcher in self._launchers().values():
            if isinstance(launcher, SSHRankLauncher):
                launcher.let_go()

    def stop(self) -> None:
        """Stop every process; those that do not end by themselves are killed."""
        if self.engines or self.controller:
            self.stop_cluster_sync()


def _log() -> logging.Logger:
    """ipyparallel writes to standard output otherwise, into the cell that starts the ranks."""
    log = logging.getLogger("mlxbench.cluster")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
        log.propagate = False
    return log


def _runs(launcher: Any) -> bool:
    """Whether the process of a launcher, which its waiting thread waits for, still runs."""
    thread = None if launcher is None else launcher._wait_thread
    return thread is not None and bool(thread.is_alive())


def local_plan(home: Path, rank: int, python: str | None) -> dict[str, Any]:
    """The plan of a rank on this machine."""
    folder = home / f"rank-{rank}"
    folder.mkdir(mode=0o700)
    connection = home / "security" / f"ipcontroller-{home.name}-engine.json"
    return {
        "ssh": "",
        "python": python or sys.executable,
        "folder": str(folder),
        "work_dir": os.getcwd(),
        "connection": str(connection),
        "environment": {},
    }
