"""Ranks on other hosts whose controller is killed, whose notebook is, or whose cable is pulled."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import machines
import psutil
from running import Recorded, kill_controller, until

from mlxbench_kernel.cluster import Cluster

RUN = Path(".cache", "mlxbench", "run")
PAUSE_SECONDS = 22.0


def hostfile(folder: Path, *hosts: tuple[str, str]) -> str:
    """Write a hostfile of ssh names and addresses."""
    path = folder / "hosts.json"
    path.write_text(json.dumps([{"ssh": name, "ips": [ip]} for name, ip in hosts]))
    return str(path)


def sshd_hostfile(folder: Path) -> str:
    return hostfile(folder, ("mac-a", "127.0.0.1"), ("mac-b", "127.0.0.1"))


def test_encrypted_ranks_come_back_to_a_new_controller(
    sshd: machines.Sshd, tmp_path: Path, recorded: Recorded
) -> None:
    cluster = Cluster.up(hostfile=sshd_hostfile(tmp_path))
    try:
        cluster.execute("kept = rank + 100")
        waiting = "import threading\nif rank: threading.Event().wait()"
        cluster.client.start_cells(waiting, [0, 1], lambda rank, message: None)
        until(lambda: "line 2" in cluster.status()[1].state)
        kill_controller(cluster)

        assert cluster.bring_back() == []

        assert "line 2" in cluster.status()[1].state
        cluster.interrupt()
        cluster.execute(
            "kept, mx.distributed.all_sum(mx.array(rank + 1), group=group).item()", output=recorded
        )
        assert [recorded.text(rank) for rank in (0, 1)] == ["(100, 3)", "(101, 3)"]
        security = cluster.info.home / "security"
        for name in ("controller-curve.json", *(f.name for f in security.glob("ipcontroller-*"))):
            assert stat.S_IMODE((security / name).stat().st_mode) == 0o600
        public, secret = json.loads((security / "controller-curve.json").read_text())
        assert secret not in "".join(
            path.read_text()
            for path in cluster.info.home.rglob("*.*")
            if path.is_file() and path.name != "controller-curve.json"
        )
        assert public in (security / f"ipcontroller-{cluster.id}-client.json").read_text()
    finally:
        assert cluster.down() == []
    assert not list((sshd.home / RUN).glob("*")) and not cluster.info.home.exists()


def test_a_rank_that_dies_with_its_nanny_is_told_by_its_launcher(
    sshd: machines.Sshd, tmp_path: Path
) -> None:
    cluster = Cluster.up(hostfile=sshd_hostfile(tmp_path))
    try:
        rank = psutil.Process(cluster.info.ranks[1].pid)
        for process in [*rank.children(), rank]:
            process.kill()
        until(lambda: cluster.client.ids == [0])
    finally:
        assert cluster.down() == []


def test_ranks_are_told_to_leave_when_the_notebook_is_killed(
    sshd: machines.Sshd, tmp_path: Path
) -> None:
    code = (
        "import sys, time\nfrom mlxbench_kernel.cluster import Cluster\n"
        "c = Cluster.up(hostfile=sys.argv[1])\n"
        "print(*[r.pid for r in c.info.ranks], c.info.home, flush=True)\ntime.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, sshd_hostfile(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    *pids, home = owner.stdout.readline().split()
    ranks = [psutil.Process(int(pid)) for pid in pids]
    owner.kill()
    owner.wait()
    gone, alive = psutil.wait_procs(ranks, timeout=20)
    assert len(gone) == 2 and not alive
    until(lambda: not Path(home).exists())
    until(lambda: not list((sshd.home / RUN).glob("*")))


def test_a_cell_sent_into_a_dead_network_arrives_once(
    namespaces: machines.Network, tmp_path: Path, recorded: Recorded
) -> None:
    first, second = namespaces.machines[:2]
    cluster = Cluster.up(hostfile=hostfile(tmp_path, *((m.name, m.ip) for m in (first, second))))
    try:
        cluster.execute("kept = rank + 100")
        namespaces.cut(second)
        cell = cluster.client.start_cells("kept += 1", [0, 1], lambda rank, message: None)
        until(lambda: cell[0].done())
        assert cluster.status()[1].state.startswith("silent for")
        namespaces.mend(second)
        until(cell[1].done, 60)
        assert cluster.pull("kept") == {0: 101, 1: 102}
    finally:
        assert cluster.down() == []


def test_hosts_of_a_network_come_back_without_the_one_that_is_off(
    namespaces: machines.Network, tmp_path: Path
) -> None:
    hosts = [(machine.name, machine.ip) for machine in namespaces.machines]
    cluster = Cluster.up(hostfile=hostfile(tmp_path, *hosts))
    try:
        cluster.execute("kept = rank + 100")
        namespaces.cut(namespaces.machines[2])
        kill_controller(cluster)
        assert cluster.bring_back() == [2]
        assert cluster.pull("kept", ranks=[0, 1]) == {0: 100, 1: 101}
        namespaces.mend(namespaces.machines[2])
        until(lambda: cluster.status()[2].state == "idle", 60)
        until(lambda: cluster.history([2]), 60)
        assert cluster.pull("kept") == {0: 100, 1: 101, 2: 102}
    finally:
        assert cluster.down() == []
