"""The ipyparallel controller of a cluster, which ends with the notebook it belongs to.

``python -m mlxbench_kernel.cluster.controller``. What differs from ipyparallel's own:

- A kernel that dies uncleanly cannot stop its cluster, and ipyparallel's controller would run
  on for ever; this one looks whether its owner still lives. When it ends, it tells all ranks to
  leave, also those on other hosts.
- It never takes a rank for dead because it is silent: a dead one is told by its launcher or
  its nanny.
- Killed, it leaves what a new one on the same ports needs: the ranks that were registered, and
  its CurveZMQ key in a file that only its user may read. ipyparallel keeps no such key.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import ipyparallel.controller.app
from ipyparallel.controller.app import IPController
from ipyparallel.controller.hub import Hub
from tornado.ioloop import PeriodicCallback
from traitlets import Float, Integer, Unicode

from mlxbench_kernel.cluster import heartbeat
from mlxbench_kernel.rank.lifetime import alive

CHECK_MS = 1000
LEAVE_SECONDS = 3.0
CONNECT_SECONDS = 5.0


class BenchHub(Hub):  # type: ignore[misc]
    """Hub that no silence makes forget a rank."""

    engine_state_file = Unicode()

    def handle_stopped_heart(self, heart: bytes) -> None:
        """Keep the rank: its network may be down, or its host asleep."""
        self.log.warning("no heartbeat of %r", heart)

    def _save_engine_state(self) -> None:
        """Write the ranks' ids so that a kill at any moment leaves a whole file."""
        if not self.engine_state_file:
            return
        path = self.engine_state_file
        self.engine_state_file = f"{path}.new"
        try:
            super()._save_engine_state()
        finally:
            self.engine_state_file = path
        os.replace(f"{path}.new", path)


class BenchController(IPController):  # type: ignore[misc]
    """Controller that ends, and clears its folder, when its owner is gone."""

    name = "mlxbench-controller"

    owner = Integer(0, config=True, help="Process id of the owner; 0 for none.")
    owner_started = Float(0.0, config=True, help="When that process was started (Unix time).")

    def load_secondary_config(self) -> None:
        if self.enable_curve:
            self._keep_curve_keys()
        super().load_secondary_config()

    def _keep_curve_keys(self) -> None:
        """Take the keys of the controller that was here before, or keep ours for the next."""
        path = Path(self.profile_dir.security_dir, "controller-curve.json")
        if path.exists():
            public, secret = json.loads(path.read_text())
            self.curve_publickey, self.curve_secretkey = public.encode(), secret.encode()
            return
        keys = [self.curve_publickey.decode(), self.curve_secretkey.decode()]
        new = path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(keys, file)
        new.replace(path)

    def cleanup_connection_files(self) -> None:
        """Keep them for a new controller; the folder is removed as a whole."""

    def start(self) -> Any:
        self._watch = PeriodicCallback(self._look, CHECK_MS)
        self._watch.start()
        return super().start()

    def _look(self) -> None:
        if self.owner and not alive(self.owner, self.owner_started):
            self._watch.stop()
            self.log.critical("The notebook's kernel is gone: the cluster ends.")
            # Not in this thread: the ranks are told through this controller.
            threading.Thread(target=self._end).start()
        elif not self.heartmonitor_process.is_alive():
            self.log.critical("The heartbeat's process is gone: the controller ends.")
            os._exit(1)  # a new one has a new heartbeat

    def _end(self) -> None:
        try:
            self._tell_ranks_to_leave()
        except Exception:
            self.log.exception("The ranks could not be told: they leave by themselves.")
        finally:
            self.terminate_children()
            shutil.rmtree(self.profile_dir.location, ignore_errors=True)
            os._exit(0)

    def _tell_ranks_to_leave(self) -> None:
        from mlxbench_kernel.cluster.client import BenchClient

        file = os.path.join(self.profile_dir.security_dir, self.client_json_file)
        client = BenchClient(file, profile_dir=self.profile_dir.location, timeout=CONNECT_SECONDS)
        client.call("leave", client.ids, timeout=LEAVE_SECONDS)


# IPController has no settings for these; it takes them from its module.
ipyparallel.controller.app.Hub = BenchHub
ipyparallel.controller.app.start_heartmonitor = heartbeat.beat


if __name__ == "__main__":
    BenchController.launch_instance()
