"""The controller is killed: the ranks stay, and one call brings it back to them."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from running import Recorded, controller, kill_controller, lives, processes, until

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError


@pytest.fixture
def two() -> Iterator[Cluster]:
    before = processes()
    cluster = Cluster.up(2)
    yield cluster
    cluster.down()
    assert processes() <= before
    assert not cluster.info.home.exists()


def test_ranks_come_back_with_their_variables(two: Cluster, recorded: Recorded) -> None:
    two.execute("kept = rank + 100")
    before = two.client
    heartbeat = controller(two).children()
    kill_controller(two)
    psutil.wait_procs(heartbeat, timeout=10)
    assert heartbeat and not any(lives(process.pid) for process in heartbeat)
    with pytest.raises(ClusterError, match="%mlx_dist heal"):
        two.execute("kept")

    assert two.bring_back() == []

    assert two.client is not before and before.closed
    assert two.client.ids == [0, 1] and two.pull("kept") == {0: 100, 1: 101}
    assert [rank.pid for rank in two.status()] == [rank.pid for rank in two.info.ranks]
    two.execute("mx.distributed.all_sum(mx.array(rank + 1), group=group).item()", output=recorded)
    assert [recorded.text(rank) for rank in (0, 1)] == ["3", "3"]


def test_a_cell_goes_on_meanwhile(two: Cluster, recorded: Recorded) -> None:
    cell = "import threading\ngo = threading.Event()\nprint('before')\ngo.wait()\nprint('after')"
    two.client.start_cells(cell, [0, 1], lambda rank, message: None)
    until(lambda: all(cells and cells[-1].messages for cells in two.history().values()))
    kill_controller(two)

    assert two.bring_back() == []

    assert all("line 4: go.wait()" in rank.state for rank in two.status())
    two.interrupt()
    until(lambda: not any(cell.running for cell in two.last_cell().values()))
    two.execute("go.is_set()", output=recorded)  # it was the old cell that ran
    assert [recorded.text(rank) for rank in (0, 1)] == ["False", "False"]


def test_it_can_happen_again_and_a_rank_may_have_died(two: Cluster, recorded: Recorded) -> None:
    for _ in range(2):
        kill_controller(two)
        assert two.bring_back() == []
    kill_controller(two)
    psutil.Process(two.info.ranks[1].pid).kill()
    until(lambda: two.machinery.ended() == [1])
    assert two.bring_back() == [1]
    until(lambda: two.client.ids == [0])
    assert [rank.state for rank in two.status()] == ["idle", "gone"]
    two.execute("rank", ranks=[0], output=recorded)
    assert recorded.text(0) == "0"


def test_a_killed_heartbeat_ends_the_controller(two: Cluster) -> None:
    (heartbeat,) = controller(two).children()
    heartbeat.kill()
    until(lambda: not two.machinery.controller_running())
    assert two.bring_back() == [] and two.pull("rank") == {0: 0, 1: 1}


def test_a_controller_that_cannot_start_says_why_and_down_works(two: Cluster) -> None:
    kill_controller(two)
    two.machinery.controller_args += ["--BenchController.no_such_option=1", "--no-such-flag"]
    with pytest.raises(ClusterError, match="does not come back at 127"):
        two.bring_back()
    with pytest.raises(ClusterError, match="%mlx_dist heal"):
        two.status()


def test_files_with_keys_are_their_users_alone(two: Cluster) -> None:
    kill_controller(two)
    two.bring_back()
    home = two.info.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    keys = list((home / "security").glob("ipcontroller-*.json"))
    assert len(keys) == 2 and all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in keys)


OWNER = """
import sys, time
from mlxbench_kernel.cluster import Cluster
cluster = Cluster.up(2, keep={keep})
cluster.execute("treasure = rank + 100")
print(cluster.id, *[rank.pid for rank in cluster.info.ranks], flush=True)
time.sleep(600)
"""


def killed_owner(keep: bool) -> tuple[str, list[psutil.Process]]:
    """A notebook that started ranks and was killed together with its controller."""
    code = OWNER.format(keep=keep)
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    id, *pids = owner.stdout.readline().split()
    ranks = [psutil.Process(int(pid)) for pid in pids]
    (info,) = [info for info in Cluster.running() if info.id == id]
    psutil.Process(int((info.home / "controller").read_text().split()[0])).kill()
    owner.kill()
    owner.wait()
    return id, ranks


def test_ranks_leave_when_notebook_and_controller_are_killed() -> None:
    id, ranks = killed_owner(keep=False)
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive
    assert id not in [info.id for info in Cluster.running()]


def test_kept_ranks_without_controller_are_found() -> None:
    id, ranks = killed_owner(keep=True)
    try:
        cluster = Cluster.attach(id)
        assert cluster.pull("treasure") == {0: 100, 1: 101}
        cluster.down()
        _, alive = psutil.wait_procs(ranks, timeout=10)
        assert not alive and not cluster.info.home.exists()
    finally:
        for rank in ranks:  # kept ones would stay for days
            if rank.is_running():
                rank.kill()


def test_of_ranks_that_were_ended_it_is_not_said_that_they_go_on() -> None:
    cluster = Cluster.up(2)
    cluster.down()
    with pytest.raises(ClusterError, match="is down: type %mlx_dist up"):
        cluster.status()
