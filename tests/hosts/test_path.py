"""The whole path of a user with three hosts: doctor, up, a cell, push, pull, restart, down."""

from __future__ import annotations

import json
from pathlib import Path

import listening
import machines
import mlx.core as mx
import numpy as np
import psutil
from running import Recorded

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.cluster.doctor import examine
from mlxbench_kernel.cluster.state import clusters_folder

SUM = "mx.distributed.all_sum(mx.array(rank + 1), group=group).item()"


def belonging(network: machines.Network) -> set[int]:
    """Processes in the hosts' namespaces, without their sshd."""
    found = set()
    for machine in network.machines:
        for pid in machines.ip("netns", "pids", machine.namespace).split():
            if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).name() != "sshd":
                found.add(int(pid))
    return found


def test_all_of_it(namespaces: machines.Network, tmp_path: Path, recorded: Recorded) -> None:
    file = namespaces.hostfile(tmp_path)
    hosts = [machine.name for machine in namespaces.machines]
    before = listening.listeners(namespaces)
    runs = {host: namespaces.folder / f"home-{host}" / ".cache/mlxbench/run" for host in hosts}
    # Of ranks of other tests whose host was off when their cluster ended: they leave later.
    others = {folder for run in runs.values() for folder in run.glob("*")}

    findings = list(examine(file))
    ways = {(f.host, f.what): f.good for f in findings if f.what.startswith("to ")}
    assert len(ways) == 6 and all(ways.values())
    (said,) = (f for f in findings if f.what == "encryption")
    assert "not encrypted" in said.detail and said.good is None

    cluster = Cluster.up(3, hostfile=file)
    try:
        for again in ("first", "restarted"):
            cluster.execute(SUM, output=recorded)
            assert [recorded.text(rank) for rank in range(3)] == ["6"] * 3, again
            recorded.messages.clear()
            if again == "first":
                cluster.push({"w": mx.arange(5, dtype=mx.bfloat16)})
                cluster.execute("w = w + rank; plain = {'rank': rank}")
                assert [cluster.pull("plain")[rank] for rank in range(3)] == [
                    {"rank": rank} for rank in range(3)
                ]
                for rank, value in cluster.pull("w").items():
                    assert value.dtype == mx.bfloat16 and value.tolist()[0] == rank
                cluster.push({"big": np.arange(5_000_000)}, ranks=[1])  # in pieces
                assert cluster.pull("big", ranks=[1])[1][-1] == 4_999_999
                assert [rank.state for rank in cluster.status()] == ["idle"] * 3
                assert "Completed registration" in cluster.logs()[2]
                connection = cluster.info.home / "security"
                file_ = connection / f"ipcontroller-{cluster.id}-client.json"
                assert json.loads(file_.read_text())["curve_serverkey"]
                heard_only_where_it_should(cluster, namespaces, before)
                cluster.restart()
    finally:
        left = cluster.down()
    assert left == []
    assert not belonging(namespaces)
    assert listening.listeners(namespaces) <= before
    assert not cluster.info.home.exists()
    assert not list(clusters_folder().glob(f"{cluster.id}*"))
    for host in hosts:
        assert set(runs[host].glob("*")) <= others


def heard_only_where_it_should(
    cluster: Cluster, network: machines.Network, before: set[listening.Listener]
) -> None:
    """Nobody listens beyond the host itself and the hostfile's network."""
    own = {machine.name: machine.ip for machine in network.machines} | {"here": network.here}
    new = {found for found in listening.listeners(network) if found not in before}
    controller = cluster.machinery.controller.pid
    of_controller = {found for found in new if controller in found.pids}
    assert len(of_controller) >= 8 and {found.ip for found in of_controller} == {network.here}
    for found in new:
        if found.place != "here" or found in of_controller:
            assert found.ip in ("127.0.0.1", own[found.place]), found
    assert {found.place for found in new} == set(own)
