"""Ranks on other hosts: over a real sshd, and between network namespaces."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import machines
import psutil
import pytest
from keys import nobody_is_shown_a_key
from needs import require
from running import Recorded, processes

from mlxbench_kernel.cluster import Cluster, lifetime
from mlxbench_kernel.errors import ClusterError, UsageError

RUN = Path(".cache", "mlxbench", "run")


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
        (tmp_path / "beside.py").unlink()  # this folder is the host's too: it has the copy alone
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


def living(home: Path) -> list[list[str]]:
    """Command lines of what runs for the ranks of a home."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(home / RUN) in part for part in line)]


def test_mpi_ranks_over_ssh(
    sshd: machines.Sshd, tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(bool(shutil.which("mpirun")), "no Open MPI: apt install openmpi-bin libopenmpi3")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    file = hostfile(tmp_path, ("mac-a", "127.0.0.1"), ("mac-b", "127.0.0.1"))
    cluster = Cluster.up(hostfile=file, backend="mpi")
    try:
        (tmp_path / "beside.py").unlink()
        code = "from beside import twice\nmx.distributed.all_sum(mx.array(twice(rank + 1))).item()"
        cluster.execute(code, output=recorded)
        assert [recorded.text(rank) for rank in (0, 1)] == ["6", "6"]
        nobody_is_shown_a_key(cluster, [cluster.info.home, *(sshd.home / RUN).glob("*")])
    finally:
        assert cluster.down() == []
    assert not living(sshd.home) and not list((sshd.home / RUN).glob("*"))

    mixed = hostfile(tmp_path, ("127.0.0.1", "127.0.0.1"), ("mac-a", "127.0.0.1"))
    with pytest.raises(UsageError, match="named as ssh reaches it, not 127"):
        Cluster.up(hostfile=mixed, backend="mpi")


def test_a_killed_rank_leaves_nothing_on_its_host(
    sshd: machines.Sshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = hostfile(tmp_path, ("mac-a", "127.0.0.1"), ("mac-b", "127.0.0.1"))
    cluster = Cluster.up(hostfile=file)
    psutil.Process(cluster.info.ranks[1].pid).kill()
    deadline = time.monotonic() + 5
    while 1 in cluster.client.ids:
        assert time.monotonic() < deadline
    assert [rank.state for rank in cluster.status()] == ["idle", "gone"]
    assert cluster.down() == []
    assert not living(sshd.home) and not list((sshd.home / RUN).glob("*"))
    assert capfd.readouterr() == ("", "")


def test_a_rank_that_dies_while_starting_shows_its_log(
    sshd: machines.Sshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zmq.py").write_text("raise ImportError('no room at the inn')")
    file = hostfile(tmp_path, ("mac-a", "127.0.0.1"), ("mac-b", "127.0.0.1"))
    with pytest.raises(ClusterError, match=r"rank \d on mac-. ended while starting:(.|\n)*inn"):
        Cluster.up(hostfile=file, env={"PYTHONPATH": str(tmp_path)})
    assert not living(sshd.home) and not list((sshd.home / RUN).glob("*"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("when", ["starting", "0 of 2", "joining"])
def test_an_interrupted_start_leaves_nothing(
    sshd: machines.Sshd, tmp_path: Path, when: str
) -> None:
    def interrupt(done: float, text: str) -> None:
        if text.startswith(when):
            raise KeyboardInterrupt

    before = processes()
    file = hostfile(tmp_path, ("mac-a", "127.0.0.1"), ("mac-b", "127.0.0.1"))
    with pytest.raises(KeyboardInterrupt):
        Cluster.up(hostfile=file, progress=interrupt)
    assert not living(sshd.home) and not list((sshd.home / RUN).glob("*"))
    assert processes() <= before


def test_down_says_which_host_it_could_not_reach(
    namespaces: machines.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "SILENCE_SECONDS", 5.0)
    first, second = namespaces.machines[:2]
    cluster = Cluster.up(hostfile=hostfile(tmp_path, *((m.name, m.ip) for m in (first, second))))
    second_pid = cluster.info.ranks[1].pid
    namespaces.cut(second)
    (left,) = cluster.down()
    assert left.startswith(f"{second.name} ") and "leave by themselves" in left
    assert not cluster.info.home.exists()
    home = namespaces.folder / f"home-{first.name}"
    assert not living(home)
    ranks = [process for process in psutil.process_iter() if process.pid == second_pid]
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive
    assert "ssh" not in {process.name() for process in psutil.Process().children()}
