"""The ipyparallel engine that a rank lives in, with what ipyparallel's own lacks.

Five differences, each for a reason measured on ipyparallel 9.2 and ipykernel 7.4:

- top-level ``await`` works (ipykernel 7 asks for a shell channel thread, which engines
  do not have, and the cell hangs for ever);
- our control handlers answer on the control thread, also while a cell blocks;
- a rank outlives a silent controller and leaves when it has nobody left (`lifetime`), which
  is looked after on the control thread: ipyparallel does it on the thread that runs cells;
- under ``mpirun`` the engine id is the MPI rank, without needing mpi4py;
- debugpy is left out: importing it is a fifth of a rank's start, and no front-end reaches it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ipyparallel.engine.app
import zmq
from ipyparallel.engine.app import IPEngine
from ipyparallel.engine.kernel import IPythonParallelKernel
from traitlets import Float, Integer, Unicode, default

from mlxbench_kernel.memory.in_shell import explain_in
from mlxbench_kernel.memory.record import RECORD
from mlxbench_kernel.rank.cells import Cells
from mlxbench_kernel.rank.control import ControlHandlers
from mlxbench_kernel.rank.history import History
from mlxbench_kernel.rank.lifetime import Lifetime
from mlxbench_kernel.rank.publishing import Publisher
from mlxbench_kernel.rank.requests import MEMORY, META, OWN_CELL

CELL_LETTERS = 40  # of a cell without a name
WAITING = 100  # messages of a publisher that are kept while the controller is away
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
        self.history = History()
        self.history.follow(self.session)
        self.control = ControlHandlers(self)
        self.control.install()
        self.cells = Cells(self.shell)
        self.publisher = Publisher(MEMORY, self.session, self.ident, self._beside_iopub())
        RECORD.pushing.send = self.publisher.send
        # ipyparallel notes every request, which would be all that %mlx_dist log shows.
        self.log.addFilter(lambda record: not record.getMessage().startswith("Handling "))
        self.shell.ask_exit = _stay
        explain_in(self.shell)

    def _beside_iopub(self) -> Callable[[], zmq.Socket[bytes]]:
        """Makes sockets that are connected as the one of this rank's output is."""
        thread, engine = self.iopub_socket, self.parent
        address: Future[str] = Future()
        # Now, while no one else has it connect or bind, and in the thread that it belongs to.
        thread.schedule(lambda: address.set_result(thread.socket.last_endpoint.decode()))

        def connect() -> zmq.Socket[bytes]:
            socket: zmq.Socket[bytes] = engine.context.socket(zmq.PUB)
            socket.linger, socket.sndhwm = 0, WAITING
            if engine.curve_serverkey:
                socket.curve_serverkey = engine.curve_serverkey
                socket.curve_publickey = engine.curve_publickey
                socket.curve_secretkey = engine.curve_secretkey
            socket.connect(address.result())
            return socket

        return connect

    async def do_execute(self, code: str, *args: Any, **keywords: Any) -> dict[str, Any]:
        about = (keywords.get("cell_meta") or {}).get(META)
        users = about is not None and not code.startswith(OWN_CELL)
        if about is not None:
            self.cells.begin(code, about)
            if users:
                first = code.strip().partition("\n")[0]
                RECORD.begin_cell(about.get("name") or first[:CELL_LETTERS])
        good = False
        try:
            reply: dict[str, Any] = await super().do_execute(code, *args, **keywords)
            good = reply["status"] == "ok"
        finally:
            progress = self.cells.end(good) if about is not None else None
            if users:
                RECORD.end_cell()
        reply[META] = progress
        if good:
            asyncio.get_running_loop().call_soon(self.cells.settle)  # when the reply is sent
            asyncio.get_running_loop().call_soon(self.control.memory.looks.after_cell)
        return reply

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        """Keep what waits: that is a cell sent after a timeout, and it was meant to run."""


class RankEngine(IPEngine):  # type: ignore[misc]
    """Engine application of one rank (``python -m mlxbench_kernel.rank``)."""

    name = "mlxbench-rank"
    loop: Any
    url_file: str

    scratch = Unicode(
        "", config=True, help="Private folder of this rank, removed when the rank exits."
    )

    owner = Integer(0, config=True, help="Process on this host it belongs to; 0 for none.")
    owner_started = Float(0.0, config=True, help="When that process was started (Unix time).")
    silence = Float(
        float("inf"), config=True, help="Seconds without a controller that it stays without owner."
    )
    _lifetime: Lifetime

    @default("connection_info_env")
    def _connection_info(self) -> str:
        return os.environ.pop("IPP_CONNECTION_INFO", "")

    @default("id")
    def _rank_of_mpirun(self) -> int | None:
        for name in MPI_RANK_VARIABLES:
            if name in os.environ:
                return int(os.environ[name])
        return None

    def init_engine(self) -> None:
        own = self.folder
        if own is not None and Path(self.url_file).parent == Path(self.scratch):
            self.url_file = str(own / Path(self.url_file).name)  # mpirun names one for all
        super().init_engine()

    def load_connection_file(self) -> None:
        own = self.folder
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
        if own is not None and Path(self.url_file).parent == own:
            os.unlink(self.url_file)  # made for this rank alone; it holds the cluster's keys

    def start_heartbeat(self, hb_ping: str, hb_pong: str, hb_period: int, identity: bytes) -> None:
        """Answer the controller's heartbeat, and watch it on the control thread's loop."""
        self._lifetime = Lifetime(self.owner, self.owner_started, self.silence)
        main_loop = self.loop
        control_loop = self.kernel.control_thread.io_loop

        def on_control_thread() -> None:
            self.loop = control_loop
            try:
                super(RankEngine, self).start_heartbeat(hb_ping, hb_pong, hb_period, identity)
            finally:
                self.loop = main_loop

        control_loop.add_callback(on_control_thread)

    def _report_ping(self, message: Any) -> None:
        self._lifetime.heard()

    @property
    def folder(self) -> Path | None:
        """Private folder of this rank; mpirun names one for all of them."""
        return Path(self.scratch).with_name(f"rank-{self.id}") if self.scratch else None

    def _hb_monitor(self) -> None:
        """What ipyparallel calls every 0.7 s; its own would leave after a few silent ones."""
        why = self._lifetime.over()
        if why:
            self.log.critical(why)
            self.leave(last=True)

    def leave(self, status: int = 0, last: bool = False) -> None:
        """End this process now, from any thread, also while the main thread blocks in MLX.

        Children started by cells end with it; the private folder is removed.

        Parameters
        ----------
        status
            Exit status.
        last
            Whether nobody else will clear the cluster's folder on this host.
        """
        import psutil

        children = psutil.Process().children(recursive=True)
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        own = self.folder
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
            modules = own.parent / "modules"  # copied here for the ranks of this host
            if (last or modules.exists()) and not list(own.parent.glob("rank-*")):
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
