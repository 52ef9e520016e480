"""Stops a cluster, also one that is only half up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from mlxbench_kernel.cluster import hosts
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.machinery import Machinery
from mlxbench_kernel.interrupts import held

LEAVE_SECONDS = 2.0


def end(
    home: Path, machinery: Machinery, client: BenchClient | None, ranks: Iterable[int]
) -> list[str]:
    """Stop all processes and remove the folder; see `Cluster.down`.

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
            deadline = time.monotonic() + LEAVE_SECONDS
            while client.ids and machinery.engines_running() and time.monotonic() < deadline:
                time.sleep(0.02)  # the ends of other processes are no event of this one
        machinery.let_go()
        left = hosts.clean(machinery.plans)
        machinery.stop()
    finally:
        if client is not None:
            client.close(linger=0)
        shutil.rmtree(home, ignore_errors=True)
    return left
