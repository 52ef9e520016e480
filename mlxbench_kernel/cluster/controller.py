"""The ipyparallel controller of a cluster, which ends with the notebook it belongs to.

``python -m mlxbench_kernel.cluster.controller``. A kernel that dies uncleanly cannot stop
its cluster, and ipyparallel's controller would run on for ever; this one looks whether its
owner still lives. When it ends, the ranks miss its heartbeat and leave by themselves.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import psutil
from ipyparallel.controller.app import IPController
from tornado.ioloop import PeriodicCallback
from traitlets import Float, Integer

CHECK_MS = 1000


class BenchController(IPController):  # type: ignore[misc]
    """Controller that ends, and clears its folder, when its owner is gone."""

    name = "mlxbench-controller"

    owner = Integer(0, config=True, help="Process id of the owner; 0 for none.")
    owner_started = Float(0.0, config=True, help="When that process was started (Unix time).")

    def start(self) -> Any:
        if self.owner:
            self._watch = PeriodicCallback(self._look_for_owner, CHECK_MS)
            self._watch.start()
        return super().start()

    def _look_for_owner(self) -> None:
        if not alive(self.owner, self.owner_started):
            self.log.critical("The notebook's kernel is gone: the cluster ends.")
            self.terminate_children()
            shutil.rmtree(self.profile_dir.location, ignore_errors=True)
            os._exit(0)


def alive(pid: int, started: float) -> bool:
    """Whether the process `pid` that was started at `started` (Unix time) still runs."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    BenchController.launch_instance()
