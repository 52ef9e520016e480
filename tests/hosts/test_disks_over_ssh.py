"""A host whose disk takes nothing is named in one line, and nothing is left anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import machines
import psutil
import pytest
from disks import Disk, small_disk
from running import processes

from mlxbench_kernel.cluster import Cluster, state
from mlxbench_kernel.errors import ClusterError


@pytest.fixture
def disk(sshd: machines.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Where the hosts keep what belongs to a cluster; this machine has another place."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    with small_disk(sshd.home / ".cache" / "mlxbench", 500) as disk:
        yield disk


def bring_up(folder: Path) -> str:
    """The message of a cluster that does not come up, with one rank here and one on a host."""
    path = folder / "hosts.json"
    names = ("127.0.0.1", "mac-a")
    path.write_text(json.dumps([{"ssh": name, "ips": ["127.0.0.1"]} for name in names]))
    before = processes()
    with pytest.raises(ClusterError) as caught:
        Cluster.up(hostfile=str(path))
    new = [process for process in psutil.process_iter() if process.pid in processes() - before]
    _, alive = psutil.wait_procs(new, timeout=5)  # sshd ends its own after the connection
    assert not alive
    assert not list(state.clusters_folder().glob("*"))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_host_with_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    message = bring_up(tmp_path)
    assert message.startswith(f"mac-a cannot write {disk.folder}/run/mlx-")
    assert ", the disk is full: make room there" in message
    assert not list(disk.folder.glob("run/*"))
    disk.fill()
    message = bring_up(tmp_path)
    assert "mac-a cannot write " in message and "the disk is full: make room there" in message


def test_a_host_with_a_read_only_disk(disk: Disk, tmp_path: Path) -> None:
    disk.lock()
    message = bring_up(tmp_path)
    assert message.startswith(f"mac-a cannot write {disk.folder}/run")
    assert "the disk is read-only" in message
    assert not list(disk.folder.iterdir())
