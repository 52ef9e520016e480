"""Strangers and curious people at a cluster with ranks on other hosts, and at a local one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import listening
import machines
import psutil
import pytest
import strange_messages
from keys import nobody_is_shown_a_key
from running import Recorded

from mlxbench_kernel.cluster import Cluster

SUM = "mx.distributed.all_sum(mx.array(rank + 1), group=group).item()"
SECRET = "the answer is 42"


@contextlib.contextmanager
def strangers(
    inside: Sequence[str],
    addresses: list[str],
    idents: list[str],
    code: str,
    curve: bool,
    key: str = "",
) -> Iterator[list[list[str]]]:
    """Somebody who says strange things while the context is open; then, what they received."""
    received: list[list[str]] = []
    process = subprocess.Popen(
        [*inside, sys.executable, strange_messages.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    orders = {"addresses": addresses, "idents": idents, "code": code, "curve": curve, "key": key}
    try:
        process.stdin.write(json.dumps(orders) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield received
        out, _ = process.communicate()
        received += json.loads(out)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def of_cluster(cluster: Cluster, network: machines.Network) -> set[listening.Listener]:
    """What the controller, the ranks and their nannies listen on."""
    own = {cluster.machinery.controller.pid, *(rank.pid for rank in cluster.info.ranks)}
    for pid in list(own):
        own |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    return {found for found in listening.listeners(network) if found.pids & own}


def all_is_well(cluster: Cluster, size: int) -> None:
    output = Recorded()
    cluster.execute(f"print({SECRET!r})\n{SUM}", output=output)
    total = size * (size + 1) // 2
    assert [output.text(rank) for rank in range(size)] == [f"{SECRET}\n{total}"] * size
    assert {rank.state for rank in cluster.status()} == {"idle"}
    assert cluster.client.ids == list(range(size))


@pytest.mark.parametrize("curve", [False, True], ids=["no key", "wrong key"])
def test_strangers_at_every_port(
    ranks_on_hosts: Cluster, namespaces: machines.Network, tmp_path: Path, curve: bool
) -> None:
    cluster = ranks_on_hosts
    proof = tmp_path / "proof"
    idents = [cluster.client._engines[rank] for rank in range(3)]
    pids = [rank.pid for rank in cluster.info.ranks]
    ports = of_cluster(cluster, namespaces)
    on_hosts = {found for found in ports if found.place != "here"}
    assert len(ports) - len(on_hosts) >= 8 and len(on_hosts) >= 3
    code = f"open({str(proof)!r}, 'w')"
    with contextlib.ExitStack() as stack:
        heard = []
        # From another host to this machine, and from each host to its own ranks.
        for machine in namespaces.machines:
            last = machine is namespaces.machines[-1]
            addresses = [
                f"{found.ip}:{found.port}"
                for found in ports
                if found.place == machine.name or (last and found.place == "here")
            ]
            inside = ["ip", "netns", "exec", machine.namespace]
            heard.append(stack.enter_context(strangers(inside, addresses, idents, code, curve)))
        all_is_well(cluster, 3)
    assert heard == [[], [], []]
    assert not proof.exists()
    all_is_well(cluster, 3)
    assert [psutil.Process(pid).pid for pid in pids] == pids
    assert of_cluster(cluster, namespaces) == ports
    for text in (controller_log(cluster), *cluster.logs(lines=1000).values()):
        assert "Traceback" not in text


def controller_log(cluster: Cluster) -> str:
    logs = (cluster.info.home / "log").glob("ipcontroller*.log")
    return "\n".join(log.read_text() for log in logs)


def test_nobody_is_shown_a_key(ranks_on_hosts: Cluster, namespaces: machines.Network) -> None:
    cluster = ranks_on_hosts
    homes = [cluster.info.home, *namespaces.folder.glob(f"home-*/.cache/mlxbench/run/{cluster.id}")]
    assert len(homes) == 4
    nobody_is_shown_a_key(cluster, homes)


def test_a_local_cluster_runs_nothing_that_is_not_signed(
    namespaces: machines.Network, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proof = tmp_path / "proof"
    cluster = Cluster.up(2)
    try:
        ports = of_cluster(cluster, namespaces)
        assert {found.ip for found in ports} == {"127.0.0.1"}
        addresses = [f"{found.ip}:{found.port}" for found in ports]
        idents = [cluster.client._engines[rank] for rank in range(2)]
        code = f"open({str(proof)!r}, 'w')"
        with strangers([], addresses, idents, code, False):
            all_is_well(cluster, 2)
        all_is_well(cluster, 2)
        assert not proof.exists()
        assert capfd.readouterr().err == ""  # nothing of it comes into the notebook's cells
        nobody_is_shown_a_key(cluster, [cluster.info.home])

        # The same with the right key does run: what was tried above is not harmless by itself.
        path = cluster.info.home / "security" / f"ipcontroller-{cluster.id}-client.json"
        key = json.loads(path.read_text())["key"]
        with strangers([], addresses, idents, code, False, key):
            deadline = time.monotonic() + 10
            while not proof.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        assert proof.exists()
    finally:
        cluster.down()
    assert not os.path.exists(cluster.info.home)
