"""Two ranks come up, run cells, and are gone again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from needs import require
from running import Recorded, lives, processes

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import CellTimeout, ClusterError, UsageError


def test_rank_r_is_engine_r_and_the_group_works(ranks: Cluster, recorded: Recorded) -> None:
    ranks.execute("mx.distributed.all_sum(mx.array(rank + 1), group=group).item()", output=recorded)
    assert [recorded.text(rank) for rank in (0, 1)] == ["3", "3"]
    assert [ranks.client[engine]["rank"] for engine in (0, 1)] == [0, 1]


def test_names_are_ready_and_ranks_share_one_seed(ranks: Cluster, recorded: Recorded) -> None:
    names = ["mx", "nn", "optim", "np", "rank", "size", "group"]
    assert not ranks.execute(f"assert set({names!r}) <= set(globals())").errors
    ranks.execute(
        "mx.random.normal((4,)).tolist(), np.random.rand(), __import__('random').random()",
        output=recorded,
    )
    assert recorded.text(0) == recorded.text(1) != ""


def test_top_level_await_works(ranks: Cluster, recorded: Recorded) -> None:
    ranks.execute(
        "import asyncio\nawait asyncio.sleep(0.01)\nrank * 10", output=recorded, timeout=20
    )
    assert [recorded.text(rank) for rank in (0, 1)] == ["0", "10"]


def test_question_mark_and_timeit(ranks: Cluster, recorded: Recorded) -> None:
    ranks.execute("mx.eval?", output=recorded, timeout=20)
    pages = [c["data"]["text/plain"] for _, kind, c in recorded.messages if kind == "page"]
    assert len(pages) == 2 and "Evaluate" in pages[0]
    again = Recorded()
    ranks.execute("%timeit -n1 -r1 sum(range(10))", output=again, timeout=20)
    assert "loop" in again.text(0) and "loop" in again.text(1)


def test_errors_come_back_by_rank_with_the_cells_line(ranks: Cluster) -> None:
    result = ranks.execute("x = 1\nif rank == 1:\n    x / 0")
    assert list(result.errors) == [1]
    assert result.errors[1]["ename"] == "ZeroDivisionError"
    assert "line 3" in "".join(result.errors[1]["traceback"]).replace("\x1b[39m", "").replace(
        "\x1b[32m", ""
    )


def test_timeout_gives_up_waiting_and_aborts_nothing(ranks: Cluster, recorded: Recorded) -> None:
    code = "import time\nif rank == 1:\n    time.sleep(1.5)\ndone = True"
    with pytest.raises(CellTimeout) as caught:
        ranks.execute(code, timeout=0.5)
    assert "rank 1 is busy" in str(caught.value) and "line 3: time.sleep(1.5)" in str(caught.value)
    ranks.execute("print(done)", output=recorded)
    assert [recorded.text(rank) for rank in (0, 1)] == ["True\n", "True\n"]


def test_status_answers_while_a_rank_is_blocked_in_a_collective(ranks: Cluster) -> None:
    blocked = "if rank == 0:\n    mx.eval(mx.distributed.all_sum(mx.ones(2), group=group))"
    with ThreadPoolExecutor(1) as pool:
        cell = pool.submit(ranks.execute, blocked)
        deadline = time.monotonic() + 20
        while not (state := ranks.status()[0].state).startswith("busy"):
            assert time.monotonic() < deadline, state
        assert "line 2: mx.eval" in state
        assert ranks.interrupt() == {"interrupted": [0], "was idle": [1]}
        assert cell.result(timeout=20).errors[0]["ename"] == "KeyboardInterrupt"


def test_what_comes_after_the_end_of_a_cell_is_shown(ranks: Cluster, recorded: Recorded) -> None:
    code = "import threading\nthreading.Timer(0.5, print, ['late']).start()\nprint('main')"
    ranks.execute(code, output=recorded, timeout=20)
    assert recorded.finished == "main\n"
    deadline = time.monotonic() + 10
    while recorded.finished != "main\nlate\n":
        assert time.monotonic() < deadline


def test_a_cell_that_waits_behind_a_failing_one_runs(ranks: Cluster, recorded: Recorded) -> None:
    with pytest.raises(CellTimeout):
        ranks.execute("import time\ntime.sleep(1)\n1 / 0", timeout=0.3)
    assert not ranks.execute("print('ran')", output=recorded).errors
    assert [recorded.text(rank) for rank in (0, 1)] == ["ran\n", "ran\n"]


def test_errors_that_ipython_only_prints_are_errors(ranks: Cluster) -> None:
    errors = ranks.execute("raise ExceptionGroup('several', [ValueError(rank)])").errors
    assert {error["ename"] for error in errors.values()} == {"ExceptionGroup"}
    assert set(ranks.execute("%no_such_magic").errors) == {0, 1}


def test_interrupt_ends_an_await(ranks: Cluster, recorded: Recorded) -> None:
    with pytest.raises(CellTimeout):
        ranks.execute("import asyncio\nawait asyncio.sleep(60)", timeout=0.5)
    ranks.interrupt()
    assert not ranks.execute("print('ran')", output=recorded, timeout=20).errors
    assert recorded.text(1) == "ran\n"


def test_interrupt_ends_a_python_loop_and_keeps_variables(
    ranks: Cluster, recorded: Recorded
) -> None:
    ranks.execute("kept = 41 + rank")
    with ThreadPoolExecutor(1) as pool:
        cell = pool.submit(ranks.execute, "import time\nwhile True:\n    time.sleep(0.01)")
        while not all(r.state.startswith("busy") for r in ranks.status()):
            pass
        ranks.interrupt()
        errors = cell.result(timeout=20).errors
    assert {error["ename"] for error in errors.values()} == {"KeyboardInterrupt"}
    ranks.execute("kept", output=recorded)
    assert [recorded.text(rank) for rank in (0, 1)] == ["41", "42"]


def test_completion_knows_the_ranks_names(ranks: Cluster) -> None:
    ranks.execute("weight_of_everything = 1")
    code = "a = 1\nprint(weight_of"
    start, matches = ranks.complete(code, len(code), timeout=20)
    assert code[start:] == "weight_of" and "weight_of_everything" in matches


def test_no_reply_is_lost_in_a_long_row_of_cells(ranks: Cluster) -> None:
    for _ in range(200):
        assert not ranks.execute("1 + 1", timeout=20).errors


def test_exit_in_a_cell_does_not_end_the_ranks(ranks: Cluster, recorded: Recorded) -> None:
    ranks.execute("before = rank\nexit()", output=recorded, timeout=20)
    assert "%mlx_dist down ends the ranks" in recorded.text(0)
    assert ranks.pull("before") == {0: 0, 1: 1}


def test_a_cell_may_import_what_ranks_leave_out(ranks: Cluster) -> None:
    assert not ranks.execute("import debugpy\ndebugpy.__version__").errors


def test_a_rank_that_does_not_exist_is_refused(ranks: Cluster) -> None:
    with pytest.raises(UsageError, match="there is no rank 2: ranks are 0 to 1"):
        ranks.execute("1", ranks=[0, 2])


def test_a_killed_rank_is_named(recorded: Recorded) -> None:
    cluster = Cluster.up(2)
    try:
        psutil.Process(cluster.info.ranks[1].pid).kill()
        deadline = time.monotonic() + 5
        while 1 in cluster.client.ids:
            assert time.monotonic() < deadline
        with pytest.raises(ClusterError, match=r"rank 1 on .* is gone"):
            cluster.execute("1")
        assert [rank.state for rank in cluster.status()] == ["idle", "gone"]
        cluster.execute("rank", ranks=[0], output=recorded)
        assert recorded.text(0) == "0"
        cluster.restart()
        assert [rank.state for rank in cluster.status()] == ["idle", "idle"]
    finally:
        cluster.down()


def test_a_controller_that_is_killed_is_named_and_restart_works(recorded: Recorded) -> None:
    cluster = Cluster.up(2)
    try:
        pid = int((cluster.info.home / "controller").read_text().split()[0])
        psutil.Process(pid).kill()
        deadline = time.monotonic() + 5
        while cluster.machinery.controller_running():
            assert time.monotonic() < deadline
        for ask in (cluster.status, lambda: cluster.execute("1"), lambda: cluster.pull("rank")):
            with pytest.raises(ClusterError, match=r"controller of cluster .* is gone"):
                ask()
        cluster.restart()
        cluster.execute("rank", output=recorded)
        assert [recorded.text(rank) for rank in (0, 1)] == ["0", "1"]
    finally:
        cluster.down()


def test_a_rank_that_is_killed_in_a_cell_is_named_while_others_work(recorded: Recorded) -> None:
    cluster = Cluster.up(2)
    try:
        code = "import os, signal, time\nif rank: os.kill(os.getpid(), 9)\ntime.sleep(5)"
        errors = cluster.execute(code, output=recorded).errors
        assert "line 3: time.sleep(5), rank 1 is gone" in " ".join(recorded.statuses)
        assert list(errors) == [1] and "killed by SIGKILL" in errors[1]["evalue"]
    finally:
        cluster.down()


def test_one_rank_works(recorded: Recorded) -> None:
    cluster = Cluster.up(1)
    try:
        cluster.execute(
            "size, mx.distributed.all_sum(mx.array(2), group=group).item()", output=recorded
        )
        assert recorded.text(0) == "(1, 2)"
    finally:
        cluster.down()


def test_mpi_ranks_have_the_engine_ids_of_their_mpi_ranks(recorded: Recorded) -> None:
    require(bool(shutil.which("mpirun")), "no Open MPI: apt install openmpi-bin libopenmpi3")
    cluster = Cluster.up(2, backend="mpi", env={"COLOUR": "green"})
    try:
        code = (
            "import os\nmx.distributed.all_sum(mx.array(rank + 1), group=group).item(), "
            "mx.distributed.all_gather(mx.array([rank]), group=group).tolist(), "
            "os.environ['COLOUR']"
        )
        cluster.execute(code, output=recorded)
        assert [recorded.text(rank) for rank in (0, 1)] == ["(3, [0, 1], 'green')"] * 2
        assert [cluster.client[engine]["rank"] for engine in (0, 1)] == [0, 1]
    finally:
        cluster.down()
    assert not any(lives(rank.pid) for rank in cluster.info.ranks)


def test_a_kernel_that_is_killed_takes_its_ranks_along() -> None:
    code = (
        "import sys, time\nfrom mlxbench_kernel.cluster import Cluster\n"
        "c = Cluster.up(2)\nprint(*[r.pid for r in c.info.ranks], c.info.home, flush=True)\n"
        "time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    *pids, _ = owner.stdout.readline().split()
    ranks = [psutil.Process(int(pid)) for pid in pids]
    owner.kill()
    owner.wait()
    gone, alive = psutil.wait_procs(ranks, timeout=15)
    assert not alive and len(gone) == 2


def test_kept_ranks_outlive_their_kernel_and_are_found(recorded: Recorded) -> None:
    code = (
        "from mlxbench_kernel.cluster import Cluster\n"
        "c = Cluster.up(2, keep=True)\nc.execute('treasure = rank + 100')\nprint(c.id)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    id = out.stdout.strip()
    info = next(info for info in Cluster.running() if info.id == id)
    assert not info.owner_alive
    cluster = Cluster.attach(id)
    try:
        cluster.execute("treasure", output=recorded)
        assert [recorded.text(rank) for rank in (0, 1)] == ["100", "101"]
    finally:
        cluster.down()
    assert not any(lives(rank.pid) for rank in info.ranks)


def test_an_engine_that_dies_while_starting_shows_its_log(tmp_path, monkeypatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif any('RankEngine' in a for a in sys.argv) or 'mlxbench_kernel.rank' in "
        "' '.join(getattr(sys, 'orig_argv', [])):\n    sys.exit('no room at the inn')"
    )
    before = processes()
    with pytest.raises(
        ClusterError, match=r"rank \d on this machine ended while starting(.|\n)*inn"
    ):
        Cluster.up(2, env={"PYTHONPATH": str(tmp_path)})
    assert processes() <= before


def test_bad_arguments_start_nothing(tmp_path) -> None:
    before = processes()
    with pytest.raises(UsageError, match="-n 0"):
        Cluster.up(0)
    with pytest.raises(UsageError, match="does not exist"):
        Cluster.up(hostfile=str(tmp_path / "hosts.json"))
    with pytest.raises(UsageError, match=r"backend jaccl is not available on 127\.0\.0\.1"):
        Cluster.up(2, backend="jaccl")
    assert processes() <= before
