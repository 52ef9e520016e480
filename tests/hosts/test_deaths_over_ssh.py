"""A rank that is gone on another host: its host says how it ended and what it held."""

from __future__ import annotations

import json
import time
from pathlib import Path

import machines
import memory_groups
import psutil
import pytest

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError

MB = 10**6


@pytest.fixture
def file(sshd: machines.Sshd, tmp_path: Path) -> str:
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps([{"ssh": f"mac-{n}", "ips": ["127.0.0.1"]} for n in "ab"]))
    return str(path)


def test_a_rank_that_its_host_kills_for_memory_says_what_it_held(file: str) -> None:
    cluster = Cluster.up(hostfile=file)
    try:
        with memory_groups.limited(600 * MB) as group:
            code = (
                "import os, pathlib, time\nfrom mlxbench_kernel.memory import linux\n"
                f"if rank == 1:\n    pathlib.Path({str(group / 'cgroup.procs')!r}).write_text("
                "str(os.getpid()))\n    linux._groups.cache_clear()\nparts = []\n"
                "while rank == 1:\n    parts.append(mx.ones((5_000_000,)))\n"
                "    mx.eval(parts)\n    time.sleep(0.05)"
            )
            errors = cluster.execute(code, timeout=60).errors
        first, seen, largest = errors[1]["evalue"].splitlines()
        host = cluster.info.ranks[1].host
        assert first.startswith(f"rank 1 on {host} died of memory, killed by SIGKILL")
        assert seen.startswith("last seen ") and "of 600 MB left" in seen
        assert largest.startswith("largest: parts ")
    finally:
        assert cluster.down() == []


def test_how_a_process_on_another_host_ended_is_said(file: str, sshd: machines.Sshd) -> None:
    cluster = Cluster.up(hostfile=file)
    try:
        pids = [who.pid for who in cluster.info.ranks]
        stayed = [psutil.Process(pid).parent() for pid in pids]
        assert len({process.pid for process in stayed} - {1}) == 2
        errors = cluster.execute("import os\nif rank == 1: os._exit(3)").errors
        assert f"is gone (process {pids[1]}, exit status 3): " in errors[1]["evalue"]
        psutil.Process(pids[0]).kill()
        deadline = time.monotonic() + 5
        while 0 in cluster.client.ids:
            assert time.monotonic() < deadline
        with pytest.raises(ClusterError, match=rf"is gone \(process {pids[0]}, killed by SIGKILL"):
            cluster.execute("1")
    finally:
        assert cluster.down() == []
    assert not list((sshd.home / ".cache" / "mlxbench" / "run").glob("*"))
    _, alive = psutil.wait_procs(stayed, timeout=5)
    assert not alive, "what stayed to see how a rank ends has ended with it"
