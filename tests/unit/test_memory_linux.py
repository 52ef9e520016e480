"""What Linux says about memory, in the formats that it is documented in."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from mlxbench_kernel.memory import cgroup, linux

GB = 10**9
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads this process's /proc")

# Linux 6.18, a process that holds 2 GB of arrays, 2026-11-23; format: proc_pid_status(5).
STATUS = """\
Name:	python
Umask:	0022
State:	R (running)
VmPeak:	 3411204 kB
VmRSS:	 2129820 kB
RssAnon:	 2111696 kB
RssFile:	   18124 kB
RssShmem:	     512 kB
VmData:	 2400100 kB
VmSwap:	    1024 kB
Threads:	4
"""

# Linux 6.18, 2026-11-23; format: proc_meminfo(5).
MEMINFO = """\
MemTotal:       24684084 kB
MemFree:        23960036 kB
MemAvailable:   23983392 kB
Buffers:             856 kB
Cached:           164632 kB
HugePages_Total:       0
"""

# Version 2 alone, systemd 257 (Debian 13); formats: cgroups(7), proc_pid_mountinfo(5).
V2_GROUPS = "0::/user.slice/user-1000.slice/session-2.scope\n"
V2_MOUNTS = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""

# Version 1 beside version 2, Linux 6.18, 2026-11-23.
V1_GROUPS = "9:name=systemd:/\n8:pids:/\n4:memory:/batch/job7\n3:cpu,cpuacct:/\n0::/\n"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""

# Docker without a control group namespace: the mount shows the container's group as the top.
DOCKER_GROUPS = "11:memory:/docker/4f1e\n1:name=systemd:/docker/4f1e\n"
DOCKER_MOUNTS = """\
717 711 0:31 /docker/4f1e /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory
"""


def confined(total: int, available: int, groups: list[Path]) -> tuple[int, int]:
    held = cgroup.confine(total, available, groups)
    return held.total, held.available


def group(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")
    return folder


def test_footprint_is_what_the_process_made_itself() -> None:
    assert linux.parse_status(STATUS) == (2_111_696 + 512 + 1024) * 1024


def test_pool_is_the_hosts() -> None:
    assert linux.parse_meminfo(MEMINFO) == (24_684_084 * 1024, 23_983_392 * 1024)


def test_groups_are_found_from_the_process_up() -> None:
    top = Path("/sys/fs/cgroup")
    user = top / "user.slice"
    assert cgroup.folders(V2_GROUPS, V2_MOUNTS) == [
        user / "user-1000.slice/session-2.scope",
        user / "user-1000.slice",
        user,
        top,
    ]
    assert cgroup.folders(V1_GROUPS, V1_MOUNTS) == [
        top / "memory/batch/job7",
        top / "memory/batch",
        top / "memory",
    ]
    assert cgroup.folders(DOCKER_GROUPS, DOCKER_MOUNTS) == [top / "memory"]
    assert cgroup.folders("", "") == []


def test_a_container_has_only_its_own_limit(tmp_path: Path) -> None:
    """Version 2 (kernel documentation, ``admin-guide/cgroup-v2.rst``, read 2026-11-23)."""
    own = group(
        tmp_path / "pod" / "box",
        memory_max=8 * GB,
        memory_current=5 * GB,
        memory_stat=f"anon {3 * GB}\nfile {2 * GB}\ninactive_file {GB}\nactive_file {GB}",
    )
    assert confined(24 * GB, 20 * GB, [own]) == (8 * GB, 4 * GB)
    assert confined(24 * GB, 2 * GB, [own]) == (8 * GB, 2 * GB), "the host is fuller"
    assert confined(8 * GB, 7 * GB, [own]) == (8 * GB, 7 * GB), "no limit below the host's"


def test_the_groups_above_hold_too(tmp_path: Path) -> None:
    above = group(
        tmp_path / "pod", memory_max=10 * GB, memory_current=10 * GB + 4096, memory_stat="anon 1"
    )
    own = group(tmp_path / "pod" / "a", memory_max="max", memory_current=GB, memory_stat="anon 1")
    top = group(tmp_path / "top")
    assert confined(24 * GB, 20 * GB, [own, above, top]) == (10 * GB, 0)


def test_version_1_says_no_limit_with_a_number(tmp_path: Path) -> None:
    """``admin-guide/cgroup-v1/memory.rst``; the number was read on Linux 6.18, 2026-11-23."""
    stat = f"cache {GB}\ninactive_file 1\ntotal_inactive_file {GB}"
    free = group(
        tmp_path / "free",
        memory_limit_in_bytes=9_223_372_036_854_771_712,
        memory_usage_in_bytes=GB,
        memory_stat=stat,
    )
    job = group(
        tmp_path / "job",
        memory_limit_in_bytes=4 * GB,
        memory_usage_in_bytes=2 * GB,
        memory_stat=stat,
    )
    assert confined(24 * GB, 20 * GB, [free]) == (24 * GB, 20 * GB)
    assert confined(24 * GB, 20 * GB, [job, free]) == (4 * GB, 3 * GB)


@needs_linux
def test_what_is_read_each_time_is_what_is_in_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def close_to_status() -> bool:
        text = Path("/proc/self/status").read_text()
        return abs(linux.footprint() - linux.parse_status(text)) < 2 * linux.MOVED

    assert close_to_status()
    monkeypatch.setattr(linux, "STATUS_SECONDS", float("inf"))
    private = bytearray(b"x") * 50_000_000
    assert close_to_status()
    shared = mmap.mmap(-1, 50_000_000)
    shared[:] = private
    assert close_to_status(), "shared memory is found without waiting"
    del private
    shared.close()
    assert close_to_status()


def test_what_is_swapped_out_is_no_memory_that_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    page = linux._PAGE // 1024
    statm, status = "9000 {} 100 1 0 900 0", "RssAnon:\t{} kB\nRssShmem:\t0 kB\nVmSwap:\t{} kB\n"
    texts = {"/proc/self/statm": statm.format(2100), "/proc/self/status": status.format(0, 0)}
    monkeypatch.setattr(linux, "read_again", texts.get)
    footprint = linux._Footprint()
    texts["/proc/self/status"] = status.format(2000 * page, 0)
    assert footprint.now() == 2000 * page * 1024
    texts["/proc/self/statm"] = statm.format(1100)
    texts["/proc/self/status"] = status.format(1000 * page, 1000 * page)
    assert footprint.now() == 2000 * page * 1024
