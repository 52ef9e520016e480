"""The reference of several benchmarks: an ipyparallel cluster as its manual starts it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ipyparallel


@contextmanager
def ipyparallel_client(n: int) -> Iterator[ipyparallel.Client]:
    """An ipyparallel cluster of `n` engines with its defaults, in a profile of its own.

    ipyparallel's processes outlive one that is terminated, so a SIGTERM from here on ends
    this process as an exception does, which stops them.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with private_profile():
        cluster = ipyparallel.Cluster(n=n, log_level=30)
        try:
            yield cluster.start_and_connect_sync(activate=False)
        finally:
            cluster.stop_cluster_sync()


@contextmanager
def private_profile() -> Iterator[None]:
    """Let ipyparallel write its files into a temporary folder, not into the user's profile."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        before = os.environ.get("IPYTHONDIR")
        os.environ["IPYTHONDIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["IPYTHONDIR"]
            else:
                os.environ["IPYTHONDIR"] = before


def join_ring(client: ipyparallel.Client, n: int) -> list[float]:
    """Make a ring of `n` engines, by hand, and return the sum that each gets of all ranks."""
    hosts = free_addresses(n)
    calls = [
        client[engine].apply_async(_sum_in_ring, rank, hosts)
        for rank, engine in enumerate(client.ids)
    ]
    return [call.get() for call in calls]


def free_addresses(n: int) -> list[list[str]]:
    """Content of a ring's hostfile for `n` ranks here, on ports that were free just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    addresses = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    for each in sockets:
        each.close()
    return addresses


@ipyparallel.interactive
def _sum_in_ring(rank: int, hosts: list[list[str]]) -> Any:
    """On an engine: join the ring and add up the ranks."""
    import json
    import os
    import tempfile

    import mlx.core as mx

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(hosts, file)
        file.flush()
        os.environ.update(MLX_RANK=str(rank), MLX_HOSTFILE=file.name)
        group = mx.distributed.init(strict=True, backend="ring")
    return mx.distributed.all_sum(mx.array(float(rank)), group=group).item()
