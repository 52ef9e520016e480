"""The pools of a host: against what Linux says itself, and in the formats of its documentation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import memory_groups
import mlx.core as mx
import psutil
import pytest

from mlxbench_kernel import memory
from mlxbench_kernel.memory import cgroup, cuda, linux, macos, samples
from mlxbench_kernel.memory.host import HostMemory, read
from mlxbench_kernel.memory.pools import _InUse

GB = 10**9
KB = 1024
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")

# proc_meminfo(5); Linux 6.18, 2026-11-23, with the values of a host that swaps.
MEMINFO = """\
MemTotal:       24684084 kB
MemFree:        1058204 kB
MemAvailable:   2276584 kB
SwapTotal:       8388604 kB
SwapFree:        6291452 kB
Zswap:            102400 kB
Zswapped:         409600 kB
Slab:             166748 kB
SReclaimable:     140704 kB
SUnreclaim:        26044 kB
KernelStack:        1448 kB
PageTables:         2032 kB
SecPageTables:         4 kB
VmallocUsed:       14268 kB
Percpu:              736 kB
HugePages_Total:       2
Hugetlb:            4096 kB
"""

# Documentation/accounting/psi.rst (Linux 6.18): the format of /proc/pressure/memory.
PRESSURE = "some avg10={} avg60=1.23 avg300=0.88 total=284750\nfull avg10={} avg60=0.15 total=42\n"

# Documentation/admin-guide/cgroup-v2.rst, memory.stat (Linux 6.18), with a job's values.
STAT = f"""\
anon {3 * GB}
file {2 * GB}
kernel 300000000
kernel_stack 5000000
inactive_file {GB}
slab_reclaimable 100000000
slab_unreclaimable 20000000
zswap 7000000
"""


@needs_linux
def test_the_pool_is_what_proc_says() -> None:
    (pool,) = memory.pools()
    assert pool.name == "host"
    held = cgroup.confine(*memory.host_pool(), linux._groups())
    assert pool.total == held.total
    assert (pool.limited_by is None) == (held.group is None)
    if held.group is None:
        fields = linux.meminfo(Path("/proc/meminfo").read_text())
        assert pool.total == psutil.virtual_memory().total
        assert abs(pool.available - psutil.virtual_memory().available) < GB
        assert pool.wired is not None
        assert fields["SUnreclaim"] * 0.9 < pool.wired < fields["SUnreclaim"] * 1.1 + GB
        assert pool.swap_total == psutil.swap_memory().total
    assert pool.pressure in (None, "normal", "warn", "critical")
    assert (pool.pressure is None) == (read("/proc/pressure/memory") is None)


def test_looking_evaluates_nothing() -> None:
    lazy = mx.ones((64_000_000,)) + 1
    before = mx.get_active_memory()
    memory.pools()
    assert mx.get_active_memory() == before
    mx.eval(lazy)
    assert mx.get_active_memory() - before > 255_000_000


def test_any_thread_can_ask() -> None:
    seen: list[tuple[memory.Pool, ...]] = []
    thread = threading.Thread(target=lambda: seen.append(memory.pools()))
    thread.start()
    thread.join()
    assert [pool.key for pool in seen[0]] == [pool.key for pool in memory.pools()]


@needs_linux
def test_a_host_that_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/meminfo": MEMINFO, "/proc/pressure/memory": PRESSURE.format("5.00", "0.30")}
    for name in ("read", "read_again"):
        monkeypatch.setattr(linux, name, lambda path: texts.get(str(path)))
    monkeypatch.setattr(linux, "_groups", tuple)
    assert linux.host() == HostMemory(
        total=24_684_084 * KB,
        available=2_276_584 * KB,
        wired=(26_044 + 1448 + 2032 + 4 + 736 + 4096) * KB,
        compressed=102_400 * KB,
        swap_used=2_097_152 * KB,
        swap_total=8_388_604 * KB,
        pressure="warn",
    )
    # An older kernel: zswap came to /proc/meminfo with Linux 5.19. Unknown is not zero.
    texts["/proc/meminfo"] = re.sub(r"Zsw.*\n|Swap.*\n", "", MEMINFO)
    del texts["/proc/pressure/memory"]
    seen = linux.host()
    assert (seen.swap_used, seen.swap_total, seen.pressure) == (None, None, None)
    assert linux.compressed(None, None) is None


def test_pressure_is_a_share_of_the_last_ten_seconds() -> None:
    """At the shares of GLib's ``gio/gmemorymonitorpsi.c``: 100 ms of 2 s, of some or of all."""
    for some, full, word in (
        ("0.00", "0.00", "normal"),
        ("4.99", "0.00", "normal"),
        ("5.00", "4.99", "warn"),
        ("40.12", "5.00", "critical"),
    ):
        assert linux.pressure(PRESSURE.format(some, full)) == word
    assert linux.pressure(None) is None, "a kernel without it, or started without it"
    assert linux.pressure("") is None


def test_swap_in_memory_is_compressed(tmp_path: Path) -> None:
    """``mm_stat`` of Documentation/admin-guide/blockdev/zram.rst: the third is mem_used_total."""
    swaps = tmp_path / "swaps"
    swaps.write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t8388604\t\t102400\t\t100\n"
        "/dev/vda2                               partition\t1048572\t\t0\t\t-2\n"
    )
    assert linux.zram(str(swaps), str(tmp_path)) is None, "it does not say"
    (tmp_path / "zram0").mkdir()
    (tmp_path / "zram0" / "mm_stat").write_text(
        "104857600 31457280 33554432        0 41943040       12        0        0        0\n"
    )
    assert linux.zram(str(swaps), str(tmp_path)) == 33_554_432
    assert linux.compressed(1000, 33_554_432) == 33_555_432
    swaps.write_text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
    assert linux.zram(str(swaps), str(tmp_path)) == 0


@pytest.fixture
def meminfo(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(path: str | Path) -> str | None:
        return MEMINFO if str(path) == "/proc/meminfo" else read(path)

    monkeypatch.setattr(linux, "read", known)
    monkeypatch.setattr(linux, "read_again", known)


@needs_linux
@pytest.mark.usefixtures("meminfo")
def test_within_a_container_all_figures_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 2 (Documentation/admin-guide/cgroup-v2.rst, Linux 6.18)."""
    above, own = tmp_path / "pod", tmp_path / "pod" / "box"
    own.mkdir(parents=True)
    monkeypatch.setattr(linux, "_groups", lambda: (own, above))
    for name, text in {
        "memory.max": 8 * GB,
        "memory.current": 7 * GB,
        "memory.stat": STAT,
        "memory.swap.current": 500_000_000,
        "memory.swap.max": 2 * GB,
        "memory.pressure": PRESSURE.format("60.00", "12.50"),
    }.items():
        (own / name).write_text(f"{str(text).rstrip()}\n")
    (above / "memory.max").write_text("max\n")
    pool = memory.pools()[-1]
    assert (pool.total, pool.available) == (8 * GB, 2 * GB)
    assert (pool.wired, pool.compressed) == (200_000_000, 7_000_000)
    assert (pool.swap_used, pool.swap_total) == (500_000_000, 2 * GB)
    assert (pool.pressure, pool.limited_by) == ("critical", str(own))

    (own / "memory.swap.max").write_text("max\n")
    assert memory.pools()[-1].swap_total == 8_388_604 * KB, "what the host has"
    # A tighter limit above it is the pool.
    for name, text in {"memory.max": 4 * GB, "memory.current": 3 * GB}.items():
        (above / name).write_text(f"{text}\n")
    pool = memory.pools()[-1]
    assert (pool.total, pool.available, pool.limited_by) == (4 * GB, GB, str(above))
    assert (pool.wired, pool.compressed, pool.pressure) == (None, None, None), "it does not say"
    assert pool.swap_used is None


@needs_linux
@pytest.mark.usefixtures("meminfo")
def test_version_1_counts_swap_with_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documentation/admin-guide/cgroup-v1/memory.rst (Linux 6.18)."""
    monkeypatch.setattr(linux, "_groups", lambda: (tmp_path,))
    for name, number in {
        "memory.limit_in_bytes": 4 * GB,
        "memory.usage_in_bytes": 2 * GB,
        "memory.memsw.limit_in_bytes": 5 * GB,
        "memory.memsw.usage_in_bytes": 2 * GB + 4096,
    }.items():
        (tmp_path / name).write_text(f"{number}\n")
    pool = memory.pools()[-1]
    assert (pool.total, pool.swap_used, pool.swap_total) == (4 * GB, 4096, GB)
    assert pool.wired is None, "it counts what can be given up with the rest"


@needs_linux
def test_in_a_real_container_its_limit_is_the_pool() -> None:
    code = """
import dataclasses, json, sys
sys.stdin.readline()
import mlx.core as mx
from mlxbench_kernel import memory
seen = [memory.pools()[-1]]
with mx.stream(mx.cpu):
    array = mx.ones((50_000_000,))
    seen.append(memory.pools()[-1])
    mx.eval(array)
seen.append(memory.pools()[-1])
print(json.dumps([dataclasses.asdict(pool) for pool in seen]))
"""
    limit = 600 * 1024**2
    with memory_groups.limited(limit) as group:
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        (group / "cgroup.procs").write_text(str(child.pid))
        answer, _ = child.communicate("go\n", timeout=50)
    before, lazy, held = json.loads(answer)
    assert (before["total"], before["limited_by"]) == (limit, str(group))
    assert limit / 2 < before["available"] < limit
    assert before["available"] - lazy["available"] < 20_000_000
    assert 190_000_000 < lazy["available"] - held["available"] < 220_000_000


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `mx.device_info` answers for the second of two GPUs, which is the default here."""
    info: dict[str, Any] = {}

    class Devices:
        type = mx.gpu

        def __init__(self, kind: object = mx.gpu, number: int = 1) -> None:
            self.number = number

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Devices) and self.number == other.number

        __hash__ = None  # type: ignore[assignment]

    def device_info(device: Devices) -> dict[str, Any]:
        return info if device.number == (1 if "free_memory" in info else 0) else {}

    monkeypatch.setattr(samples, "_has_gpu", lambda: True)
    monkeypatch.setattr(mx, "Device", Devices)
    monkeypatch.setattr(mx, "default_device", Devices)
    monkeypatch.setattr(mx, "device_count", lambda kind: 2 if "free_memory" in info else 1)
    monkeypatch.setattr(mx, "device_info", device_info)
    return info


def test_on_cuda_there_are_two_pools(gpu: dict[str, Any]) -> None:
    """Keys of ``mlx/backend/cuda/device_info.cpp`` (ml-explore/mlx 846d176, 2026-08-22)."""
    gpu.update(
        device_name="NVIDIA H200",
        uuid="GPU-01234567-89ab-cdef-0123-456789abcdef",
        total_memory=150_754_820_096,
        free_memory=149_000_000_000,
    )
    device, host = memory.pools()
    assert (device.name, device.total) == ("cuda:1", 150_754_820_096)
    assert (device.available, device.gpu_used) == (149_000_000_000, 1_754_820_096)
    assert device.used == device.gpu_used == memory.gpu_used()
    assert (device.wired, device.swap_total, device.pressure, device.cap) == (None,) * 4
    assert (host.name, host.total, host.cap) == ("host", memory.host_pool()[0], None)
    other = gpu["uuid"].replace("GPU-0", "GPU-f")
    gpu["uuid"] = other
    assert memory.pools()[0].key != device.key, "another GPU, though it may be called the same"
    seen = cuda.device()
    assert seen is not None
    assert seen.others(1_000_000_000) == 754_820_096


def test_on_metal_there_is_one_with_a_cap(gpu: dict[str, Any]) -> None:
    """Keys of ``mlx/backend/metal/device_info.cpp`` (ml-explore/mlx 846d176, 2026-08-22)."""
    gpu.update(device_name="Apple M4 Max", max_recommended_working_set_size=115_448_725_504)
    (pool,) = memory.pools()
    assert (pool.name, pool.cap, pool.gpu_used) == ("unified", 115_448_725_504, None)


def test_the_gpus_use_is_not_asked_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([5 * GB, None, 7 * GB])
    monkeypatch.setattr(macos, "gpu_in_use", lambda: next(answers))
    kept = _InUse()
    assert [kept.read(max_age=60), kept.read(max_age=60)] == [5 * GB, 5 * GB]
    assert kept.read(max_age=0) is None, "it stopped answering: not the old figure"
    assert kept.read(max_age=0) == 7 * GB
