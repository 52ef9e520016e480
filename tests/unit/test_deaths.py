"""What is said of a rank that is gone."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from mlxbench_kernel.cluster.deaths import Death
from mlxbench_kernel.cluster.state import RankInfo
from mlxbench_kernel.memory import cgroup

GB, MB = 10**9, 10**6
WHO = RankInfo(1, "studio", 4001, "cpu", "0.32.4")
NEXT = "%mlx_dist heal brings it back (%mlx_dist log --ranks 1)"
HELD = {"name": "x", "bytes": 12 * GB, "kind": "float32 (3, 1000000000)"}


def seen(
    left: int = 8 * GB, killed: int = 0, age: float = 0.4, limit: int | None = None, **more: Any
) -> dict[str, Any]:
    memory = {
        "active": 13_900 * MB, "cache": 200 * MB, "peak": 14 * GB, "footprint": 14_200 * MB,
        "total": 16 * GB, "available": left, "limit": limit,
    }  # fmt: skip
    host = {"total": 16 * GB, "available": left}
    return {"memory": memory, "host": host, "killed": killed, "age": age, "largest": [HELD], **more}


def test_the_message_has_one_line_to_act_on_and_then_what_was_seen() -> None:
    assert Death(-signal.SIGKILL, seen(120 * MB)).message(WHO) == (
        "rank 1 on studio died of memory, killed by SIGKILL while 120 MB of 16.0 GB were left "
        f"there: {NEXT}\n"
        "last seen 0.4 s before: footprint 14.2 GB, MLX active 13.9 GB, cache 200 MB, "
        "120 MB of 16.0 GB left\n"
        "largest: x 12.0 GB float32 (3, 1000000000)"
    )


@pytest.mark.parametrize(
    ("death", "first"),
    [
        (Death(-9, seen(killed=1)), "died of memory, killed by SIGKILL as the system reports of "),
        # Not known how it ended: after `attach`, or on a host that does not answer.
        (Death(None, seen(120 * MB)), "is gone, likely for want of memory while 120 MB of "),
        (Death(None, seen()), "is gone (process 4001): "),
        (Death(), "is gone (process 4001): "),
        # Enough was left, or nobody looked lately: somebody else may have killed it.
        (Death(-9, seen()), "is gone (process 4001, killed by SIGKILL): "),
        (Death(-9, seen(120 * MB, age=60.0)), "is gone (process 4001, killed by SIGKILL): "),
        (Death(-9), "is gone (process 4001, killed by SIGKILL): "),
        # Not what the system does for want of memory.
        (Death(-11, seen(120 * MB)), "is gone (process 4001, killed by SIGSEGV): "),
        (Death(1, seen(120 * MB, killed=1)), "is gone (process 4001, exit status 1): "),
        (Death(-40), "is gone (process 4001, killed by signal 40): "),
        # Metal's recommended working set, all but used up.
        (Death(-9, seen(limit=14 * GB)), "died of memory, killed by SIGKILL"),
        (Death(-9, seen(limit=None, left=9 * GB)), "is gone (process 4001, killed by SIGKILL)"),
    ],
)
def test_the_first_line_says_no_more_than_is_known(death: Death, first: str) -> None:
    line = death.message(WHO).splitlines()[0]
    assert line.startswith(f"rank 1 on studio {first}")
    assert line.endswith(NEXT)


def test_what_counts_is_the_hosts_memory_also_with_a_gpu_of_its_own() -> None:
    full_gpu = seen()
    full_gpu["memory"]["available"] = 10 * MB
    assert not Death(-9, full_gpu).of_memory
    asked = seen(120 * MB)
    del asked["host"]  # a sample that the notebook asked for has one pool
    assert Death(-9, asked).of_memory


# Kernel documentation, admin-guide/cgroup-v2.rst ("memory.events"), as on Linux 6.12.
V2_EVENTS = "low 0\nhigh 0\nmax 118\noom 2\noom_kill 2\noom_group_kill 0\n"
# admin-guide/cgroup-v1/memory.rst, "OOM Control"; read on Linux 6.18, 2026-11-25.
V1_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
# The same before Linux 4.13, which did not count yet.
OLD_CONTROL = "oom_kill_disable 0\nunder_oom 0\n"


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("memory.events", V2_EVENTS, 2),
        ("memory.oom_control", V1_CONTROL, 3),
        ("memory.oom_control", OLD_CONTROL, None),
    ],
)
def test_the_systems_count_is_read(tmp_path: Path, name: str, text: str, count: int | None) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / name).write_text(text)
    (tmp_path / name).write_text(text.replace("oom_kill ", "oom_kill 1"))
    expected = {} if count is None else {str(own): count}
    assert cgroup.oom_kills([own, tmp_path]) == expected
    assert cgroup.oom_kills([]) == {}
