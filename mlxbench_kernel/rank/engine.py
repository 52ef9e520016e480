"""The ipyparallel engine that a rank lives in, with what ipyparallel's own lacks.

Five differences, each for a reason measured on ipyparallel 9.2 and ipykernel 7.4:

- top-level ``await`` works (ipykernel 7 asks for a shell channel thread, which engines
  do not have, and the cell hangs for ever);
- our control handlers answer on the control thread, also while a cell blocks;
- the controller's heartbeat is watched on the control thread: ipyparallel watches it on
  the thread that runs cells, so a rank inside a collective would outlive its cluster;
- under ``mpirun`` the engine id is the MPI rank, without needing mpi4py;
- debugpy is left out: importing it is a fifth of a rank's start, and no front-end reaches it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ipyparallel.engine.app
from ipyparallel.engine.app import IPEngine
from ipyparallel.engine.kernel import IPythonParallelKernel
from traitlets import Unicode, default

from mlxbench_kernel.rank.control import ControlHandlers

MPI_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


class _MainThreadOnly:
    """Stands where ipykernel 7 expects a shell channel thread, and is false.

    ``ipykernel.ipkernel.IPythonKernel.do_execute`` reads ``parent_thread`` of it before it
    awaits a cell; every other use first asks whether there is one.
    """

    parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


def _stay() -> None:
    """What ``exit`` and ``quit`` do in a cell: ended by them, a rank would lose its variables."""
    print("exit does nothing on a rank; %mlx_dist down ends the ranks")


class RankKernel(IPythonParallelKernel):  # type: ignore[misc]
    """Kernel of a rank: top-level ``await`` and mlxbench's control handlers."""

    _supports_kernel_subshells = False

    @default("shell_channel_thread")
    def _no_shell_channel_thread(self) -> _MainThreadOnly:
        return _MainThreadOnly()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        ControlHandlers(self).install()
        self.shell.ask_exit = _stay

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        """Keep what waits: that is a cell sent after a timeout, and it was meant to run."""


class RankEngine(IPEngine):  # type: ignore[misc]
    """Engine application of one rank (``python -m mlxbench_kernel.rank``)."""

    name = "mlxbench-rank"
    loop: Any

    scratch = Unicode(
        "", config=True, help="Private folder of this rank, removed when the rank exits."
    )

    @default("connection_info_env")
    def _connection_info(self) -> str:
        return os.environ.pop("IPP_CONNECTION_INFO", "")

    @default("id")
    def _rank_of_mpirun(self) -> int | None:
        for name in MPI_RANK_VARIABLES:
            if name in os.environ:
                return int(os.environ[name])
        return None

    def load_connection_file(self) -> None:
        # The controller may still be writing it.
        deadline = time.monotonic() + self.wait_for_url_file
        while True:
            try:
                super().load_connection_file()
                break
            except ValueError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        if self.scratch and Path(self.url_file).parent == Path(self.scratch):
            os.unlink(self.url_file)  # made for this rank alone; it holds the cluster's keys

    def start_heartbeat(self, hb_ping: str, hb_pong: str, hb_period: int, identity: bytes) -> None:
        """Answer the controller's heartbeat, and watch it on the control thread's loop."""
        main_loop = self.loop
        control_loop = self.kernel.control_thread.io_loop

        def on_control_thread() -> None:
            self.loop = control_loop
            try:
                super(RankEngine, self).start_heartbeat(hb_ping, hb_pong, hb_period, identity)
            finally:
                self.loop = main_loop

        control_loop.add_callback(on_control_thread)

    def _hb_monitor(self) -> None:
        if self._hb_missed_beats + 1 >= self.max_heartbeat_misses:
            self._hb_listener.flush()
            if self._hb_last_monitored > self._hb_last_pinged:
                self.log.critical("The controller is gone: this rank leaves.")
                self.leave()
        super()._hb_monitor()

    def leave(self, status: int = 0) -> None:
        """End this process now, from any thread, also while the main thread blocks in MLX.

        Children started by cells end with it; the private folder is removed.
        """
        import psutil

        children = psutil.Process().children(recursive=True)
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        if self.scratch:
            own = Path(self.scratch).with_name(f"rank-{self.id}")  # mpirun names one for all
            shutil.rmtree(own, ignore_errors=True)
            modules = own.parent / "modules"  # copied here for the ranks of this host
            if modules.exists() and not list(own.parent.glob("rank-*")):
                shutil.rmtree(own.parent, ignore_errors=True)
        os._exit(status)


def _without_debugger() -> None:
    """Let ipykernel find no debugpy, which a cell may still import."""
    sys.modules["debugpy"] = None  # type: ignore[assignment]  # makes an import of it fail
    try:
        importlib.import_module("ipykernel.debugger")
    finally:
        del sys.modules["debugpy"]


_without_debugger()
# IPEngine has no setting for its kernel's class; it takes the name from its module.
ipyparallel.engine.app.Kernel = RankKernel
