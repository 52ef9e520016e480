"""A rank that is gone: how it ended, and what was last seen of its memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import memory_groups
import psutil
import pytest
from running import Recorded

from mlxbench_kernel import memory
from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError
from mlxbench_kernel.rank import last_seen

MB = 10**6


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster.up(2)
    yield cluster
    cluster.down()


def wait_for_a_record(cluster: Cluster, rank: int, name: str) -> None:
    """Until a variable is in what the rank has written of itself."""
    folder = cluster.info.home / f"rank-{rank}"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        record = last_seen.read(folder)
        if record and any(held["name"] == name for held in record["largest"]):
            return
    raise AssertionError(f"{name} was not seen")


def test_a_rank_that_the_system_kills_for_memory_says_what_it_held(
    cluster: Cluster, recorded: Recorded
) -> None:
    with memory_groups.limited(600 * MB) as group:
        join = (
            "import os, pathlib\nfrom mlxbench_kernel.memory import linux\n"
            f"if rank == 1:\n    pathlib.Path({str(group / 'cgroup.procs')!r}).write_text("
            "str(os.getpid()))\nlinux._groups.cache_clear()\nkept = rank + 40"
        )
        assert not cluster.execute(join).errors
        fill = (
            "import time\nmodel = nn.Linear(2000, 2000)\nmx.eval(model)\nparts = []\n"
            "lazy = mx.ones((100_000_000,))\n"
            "while rank == 1:\n    parts.append(mx.ones((5_000_000,)))\n"
            "    mx.eval(parts)\n    time.sleep(0.05)"
        )
        errors = cluster.execute(fill, output=recorded, timeout=60).errors
    first, seen, largest = errors[1]["evalue"].splitlines()
    host = cluster.info.ranks[1].host
    assert first.startswith(f"rank 1 on {host} died of memory, killed by SIGKILL")
    assert "%mlx_dist heal brings it back" in first
    assert seen.startswith("last seen ") and "footprint" in seen and "of 600 MB left" in seen
    assert largest.startswith("largest: parts ") and "model 16.0 MB Linear" in largest
    assert "lazy" not in largest

    with pytest.raises(ClusterError, match=r"rank 1 on .* died of memory"):
        cluster.execute("1")
    cluster.execute("kept", ranks=[0], output=recorded)
    assert recorded.text(0) == "40", "the other rank has its variables"


def test_a_rank_that_is_killed_with_little_left_died_of_memory(cluster: Cluster) -> None:
    # macOS has no count of such kills: there it is told by what was left just before.
    tight = (
        "from mlxbench_kernel import memory\nif rank == 1:\n"
        "    memory.host_pool = lambda: (16 * 10**9, 120 * 10**6)\n"
        "x = mx.ones((1000, 1000))\nmx.eval(x)\nimport time\nwhile rank == 1: time.sleep(0.01)"
    )
    cell = Thread(target=lambda: results.append(cluster.execute(tight)))
    results: list = []
    cell.start()
    wait_for_a_record(cluster, 1, "x")
    os.kill(cluster.info.ranks[1].pid, signal.SIGKILL)
    cell.join()
    first, _, largest = results[0].errors[1]["evalue"].splitlines()
    assert "died of memory, killed by SIGKILL while 120 MB of 16.0 GB were left there" in first
    assert "x 4.00 MB float32 (1000, 1000)" in largest


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("os._exit(3)", "exit status 3"),
    ],
)
def test_how_a_process_ended_is_said(cluster: Cluster, code: str, how: str) -> None:
    errors = cluster.execute(f"import os, signal\nif rank == 1: {code}").errors
    pid = cluster.info.ranks[1].pid
    first = errors[1]["evalue"].splitlines()[0]
    assert f"is gone (process {pid}, {how}): %mlx_dist heal brings it back" in first
    assert "memory" not in first


def test_an_allocation_that_is_refused_is_an_error_of_the_cell(cluster: Cluster) -> None:
    # MLX raises too, where its allocator does (Metal, CUDA); on the CPU 0.32.4 ends by SIGSEGV.
    errors = cluster.execute("np.zeros(2**55) if rank == 1 else None").errors
    assert list(errors) == [1] and "Unable to allocate" in errors[1]["evalue"]
    assert not cluster.execute("rank").errors


def test_the_sample_on_the_control_channel_has_the_largest_variables(cluster: Cluster) -> None:
    assert not cluster.execute("weights = mx.ones((500, 500))\nmx.eval(weights)").errors
    wait_for_a_record(cluster, 0, "weights")
    sample = cluster.client.call("sample", [0], timeout=5)[0]
    assert sample["largest"][0] == {
        "name": "weights", "bytes": 1_000_000, "kind": "float32 (500, 500)",
    }  # fmt: skip
    assert memory.MemorySample(**sample["memory"]).active >= 1_000_000


def test_what_a_rank_wrote_is_private_and_gone_with_it(cluster: Cluster) -> None:
    cluster.execute("big = mx.ones((500, 500))\nmx.eval(big)")
    wait_for_a_record(cluster, 1, "big")
    path = cluster.info.home / "rank-1" / last_seen.NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list(Path(path.parent).glob("*.part"))
    process = psutil.Process(cluster.info.ranks[1].pid)
    cluster.down()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not path.exists()
