"""Ranks on other hosts: over a real sshd, and between network namespaces."""

from __future__ import annotations

import json
from pathlib import Path

import machines
import pytest
from running import Recorded

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError


def hostfile(folder: Path, *hosts: tuple[str, str]) -> str:
    """Write a hostfile of ssh names and addresses."""
    path = folder / "hosts.json"
    path.write_text(json.dumps([{"ssh": name, "ips": [ip]} for name, ip in hosts]))
    return str(path)


def test_ranks_over_ssh_with_the_notebooks_modules(
    sshd: machines.Sshd, tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    file = hostfile(tmp_path, ("mac-a", "127.0.0.1"), ("mac-b", "127.0.0.1"))
    cluster = Cluster.up(hostfile=file, env={"COLOUR": "green"})
    try:
        assert any("beside.py" in note for note in cluster.info.notes)
        code = (
            "import os\nfrom beside import twice\n"
            "total = mx.distributed.all_sum(mx.array(twice(rank)), group=group)\n"
            "total.item(), os.environ['COLOUR']"
        )
        cluster.execute(code, output=recorded)
        assert [recorded.text(rank) for rank in (0, 1)] == ["(2, 'green')"] * 2
        connection = json.loads(
            (cluster.info.home / "security" / f"ipcontroller-{cluster.id}-client.json").read_text()
        )
        assert connection["curve_serverkey"]
        assert cluster.logs(lines=3).keys() == {0, 1}
    finally:
        cluster.down()
    assert not (sshd.home / ".cache" / "mlxbench" / "run" / cluster.id).exists()


def test_one_rank_here_and_one_over_ssh(
    sshd: machines.Sshd, tmp_path: Path, recorded: Recorded
) -> None:
    file = hostfile(tmp_path, ("127.0.0.1", "127.0.0.1"), ("mac-a", "127.0.0.1"))
    cluster = Cluster.up(hostfile=file)
    try:
        cluster.execute(
            "mx.distributed.all_sum(mx.array(rank + 1), group=group).item()", output=recorded
        )
        assert [recorded.text(rank) for rank in (0, 1)] == ["3", "3"]
    finally:
        cluster.down()


def test_ranks_on_three_hosts_of_a_network(
    namespaces: machines.Network, tmp_path: Path, recorded: Recorded
) -> None:
    hosts = [(machine.name, machine.ip) for machine in namespaces.machines]
    cluster = Cluster.up(hostfile=hostfile(tmp_path, *hosts))
    try:
        cluster.execute(
            "mx.distributed.all_sum(mx.array(rank + 1), group=group).item()", output=recorded
        )
        assert [recorded.text(rank) for rank in (0, 1, 2)] == ["6", "6", "6"]
    finally:
        cluster.down()


def test_a_path_that_a_firewall_eats_is_found_before_init(
    namespaces: machines.Network, tmp_path: Path
) -> None:
    hosts = [(machine.name, machine.ip) for machine in namespaces.machines]
    second, third = namespaces.machines[1:]
    with (
        namespaces.eaten(third, second.ip),
        pytest.raises(ClusterError, match=rf"rank 1 on {second.name} cannot reach rank 2"),
    ):
        Cluster.up(hostfile=hostfile(tmp_path, *hosts), timeout=40)
