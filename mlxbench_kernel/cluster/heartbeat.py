"""The heartbeat of the controller: ipyparallel's child process, which ends with its parent.

ipyparallel's own goes on when the controller is killed: it would keep its ports, so that no
new controller could beat, and tell the ranks that all is well.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

from ipyparallel.controller.heartmonitor import start_heartmonitor


def beat(**arguments: Any) -> None:
    """Beat until the parent process ends; takes what `start_heartmonitor` takes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_heartmonitor(**arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
