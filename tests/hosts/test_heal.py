"""Ranks on three hosts: one dies, one drops off the network and comes back, or does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import machines
import psutil
import pytest
from faults import Told, in_background, wait_until_waiting
from running import until

from mlxbench_kernel.cluster import Cluster, healing
from mlxbench_kernel.errors import ClusterError

SETUP = """
g = mx.distributed.init()
add = mx.compile(lambda x: mx.distributed.all_sum(x, group=g))
weights = {"w": mx.arange(4) + 1}
protect(weights=weights)
mine = rank + 40
"""
BLOCKED = "mx.eval(mx.distributed.all_sum(mx.ones(4), group=g))"


@pytest.fixture
def cluster(namespaces: machines.Network, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster.up(3, hostfile=namespaces.hostfile(tmp_path))
    assert not cluster.execute(SETUP, setup=True).errors
    yield cluster
    for machine in namespaces.machines:
        namespaces.mend(machine)
    until(lambda: len(cluster.client.call("progress", range(cluster.size), 2)) == cluster.size, 60)
    assert cluster.down() == []


def assert_usable(cluster: Cluster) -> None:
    size = cluster.size
    code = "both = add(mx.ones(2)).tolist(), mx.distributed.all_sum(mx.array(rank)).item(), size"
    assert not cluster.execute(code, timeout=30).errors
    expected = ([float(size)] * 2, sum(range(size)), size)
    assert cluster.pull("both") == dict.fromkeys(range(size), expected)


def test_a_rank_on_another_host_is_brought_back(cluster: Cluster) -> None:
    told = Told()
    cell = in_background(
        cluster,
        f"if rank != 1:\n    {BLOCKED}\nelse:\n    import time\n    time.sleep(60)",
        tell=told,
    )
    wait_until_waiting(cluster, 0)
    psutil.Process(cluster.info.ranks[1].pid).kill()
    errors = cell.result(timeout=20).errors
    assert "gone" in errors[1]["evalue"] or "killed" in errors[1]["evalue"]
    cluster.heal(tell=told)
    assert "rank 1 on" in str(told) and "is back" in str(told)
    assert cluster.pull("mine") == {0: 40, 1: 41, 2: 42}
    cluster.execute("weight = weights['w'].tolist()")
    assert cluster.pull("weight", [1]) == {1: [1, 2, 3, 4]}
    assert_usable(cluster)


def test_a_host_drops_off_and_comes_back(
    cluster: Cluster, namespaces: machines.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = namespaces.machines[1]
    cluster.execute("mine = rank + 50")
    namespaces.cut(lost)
    cell = in_background(cluster, BLOCKED)
    wait_until_waiting(cluster, 0)
    until(lambda: cluster.status()[1].state.startswith("silent for"), 5)
    assert 1 in cluster.client.living()
    cluster.interrupt([0, 2])
    until(lambda: {cluster.doing([0, 2])[rank] for rank in (0, 2)} == {"idle"})
    assert cluster.pull("mine", [0, 2]) == {0: 50, 2: 52}
    with monkeypatch.context() as patch:
        patch.setattr(healing, "RETURN_SECONDS", 0.5)
        with pytest.raises(ClusterError, match=r"rank 1 on .* does not answer.*heal --drop"):
            cluster.heal()
    namespaces.mend(lost)
    until(lambda: 1 in cluster.client.call("progress", [1], 2), 30)
    cluster.interrupt([1])
    cell.result(timeout=30)
    began = time.monotonic()
    told = Told()
    cluster.heal(tell=told)
    assert time.monotonic() - began < 30
    assert cluster.pull("mine") == {rank: rank + 50 for rank in range(3)}
    assert_usable(cluster)


def test_heal_drop_goes_on_with_fewer_ranks(cluster: Cluster, namespaces: machines.Network) -> None:
    assert_usable(cluster)  # traced with three ranks
    lost = namespaces.machines[1]
    namespaces.cut(lost)
    until(lambda: cluster.status()[1].state.startswith("silent for"), 5)
    told = Told()
    cluster.heal(drop=True, tell=told)
    assert "2 ranks are left, with new numbers (0 → 0, 2 → 1)" in str(told)
    assert cluster.size == 2 and [rank.rank for rank in cluster.info.ranks] == [0, 1]
    assert cluster.pull("mine") == {0: 40, 1: 42}
    assert cluster.pull("rank") == {0: 0, 1: 1}
    cluster.execute("numbers = g.rank(), g.size(), group.size()")
    assert cluster.pull("numbers") == {0: (0, 2, 2), 1: (1, 2, 2)}
    assert_usable(cluster)
