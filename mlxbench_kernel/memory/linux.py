"""Linux: footprint and pool from ``/proc`` (proc_pid_status(5), proc_meminfo(5)).

What the kernel holds and how it feels the lack of memory follows ``Documentation/filesystems/
proc.rst``, ``accounting/psi.rst`` and ``admin-guide/blockdev/zram.rst`` of Linux.
"""

from __future__ import annotations

import os
import re
import time
from functools import cache
from pathlib import Path

from mlxbench_kernel.memory import cgroup
from mlxbench_kernel.memory.host import HostMemory, read, read_again

# Kernel memory that is neither a user's nor given up when memory runs short. VmallocUsed is not
# among it: kernel stacks and per-cpu memory can be in it, and device memory that is only mapped.
# Huge pages are set aside by the administrator: MemAvailable never has them.
WIRED = ("SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu", "Hugetlb")
STALLED = 5.0  # percent of ten seconds; see `pressure`
_NAMES = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree", "Zswap", *WIRED)
# These alone: to take all of some fifty apart takes 2.5 times as long.
_FIELD = re.compile(rf"^({'|'.join(_NAMES)}): +(\d+) kB$", re.MULTILINE)
_HELD = re.compile(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", re.MULTILINE)
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)
_PAGE = os.sysconf("SC_PAGE_SIZE")
STATUS_SECONDS = 1.0  # for which shared and swapped memory count as they were
MOVED = 1_000_000  # bytes by which pages may move before these are read again
_STALL = re.compile(r"^(some|full) avg10=([\d.]+)", re.MULTILINE)


def footprint() -> int:
    """Bytes that this process made itself, in memory or swapped out.

    ``RssAnon + RssShmem + VmSwap`` of ``/proc/self/status``: without the files it maps, which
    the kernel can drop, and with what was swapped out, as macOS's footprint has what was
    compressed. Shared memory counts in each process that maps it. ``Pss`` of ``smaps_rollup``
    would split it, but walks every page: 18 ms at 2 GB, against 0.02 ms at any size
    (measured 2026-11-23 on Linux 6.18).

    ``RssAnon`` is read each time, as ``resident - shared`` of ``/proc/self/statm``, which is the
    same number (``fs/proc/task_mmu.c``) in less than half the time. The other two are read once
    a second, and at once where they may have changed by more than `MOVED`: what is swapped out
    leaves ``RssAnon``, and shared memory comes into ``shared``.
    """
    return _FOOTPRINT.now()


class _Footprint:
    """The footprint, and when the slow part of it was read."""

    def __init__(self) -> None:
        self._read_in = 0  # the process; a fork is another one
        self._at = float("-inf")
        self._anonymous = self._shared = self._beside = 0

    def now(self) -> int:
        _, resident, shared, *_ = _required("/proc/self/statm").split(maxsplit=3)
        in_files = int(shared) * _PAGE
        anonymous = int(resident) * _PAGE - in_files
        if (
            time.monotonic() - self._at > STATUS_SECONDS
            or self._read_in != os.getpid()
            or anonymous < self._anonymous - MOVED
            or abs(in_files - self._shared) > MOVED
        ):
            text = _required("/proc/self/status")
            self._at, self._read_in, self._shared = time.monotonic(), os.getpid(), in_files
            self._anonymous = anonymous
            self._beside = parse_status(text) - parse_anonymous(text)
        self._anonymous = max(self._anonymous, anonymous)
        return anonymous + self._beside


_FOOTPRINT = _Footprint()


def parse_status(text: str) -> int:
    """Footprint in bytes from the text of ``/proc/PID/status``."""
    return 1024 * sum(map(int, _HELD.findall(text)))


def parse_anonymous(text: str) -> int:
    """``RssAnon`` in bytes from the text of ``/proc/PID/status``."""
    found = _ANONYMOUS.search(text)
    return 1024 * int(found[1]) if found else 0


def pool() -> tuple[int, int]:
    """Total and available bytes, within the control groups' limits where there are some."""
    total, available = parse_meminfo(_required("/proc/meminfo"))
    held = cgroup.confine(total, available, _groups())
    return held.total, held.available


def host() -> HostMemory:
    """All that Linux tells of the memory that this process draws from.

    Within a control group with a limit everything is the group's: the group is the pool.
    """
    fields = meminfo(_required("/proc/meminfo"))
    held = cgroup.confine(fields["MemTotal"], fields["MemAvailable"], _groups())
    swap_total = fields.get("SwapTotal")
    if held.group is not None:
        swap_used, swap_total = cgroup.swap(held.group, swap_total)
        return HostMemory(
            total=held.total,
            available=held.available,
            wired=cgroup.kernel(held.stat),
            compressed=held.stat.get("zswap"),  # since Linux 5.19
            swap_used=swap_used,
            swap_total=swap_total,
            pressure=pressure(read(held.group / "memory.pressure")),
            limited_by=held.group,
        )
    return HostMemory(
        total=held.total,
        available=held.available,
        wired=sum(fields.get(name, 0) for name in WIRED),
        compressed=compressed(fields.get("Zswap"), zram() if swap_total else 0),
        swap_used=None if swap_total is None else swap_total - fields["SwapFree"],
        swap_total=swap_total,
        pressure=pressure(read_again("/proc/pressure/memory")),
    )


def meminfo(text: str) -> dict[str, int]:
    """Bytes by name from the text of ``/proc/meminfo``, of what is asked for here."""
    return {name: 1024 * int(number) for name, number in _FIELD.findall(text)}


def parse_meminfo(text: str) -> tuple[int, int]:
    """Total and available bytes from the text of ``/proc/meminfo``."""
    fields = meminfo(text)
    return fields["MemTotal"], fields["MemAvailable"]


def pressure(text: str | None) -> str | None:
    """How short memory is, from the text of ``/proc/pressure/memory``; None without one.

    ``"warn"`` where for 5 % of the last ten seconds some task waited for memory, ``"critical"``
    where all did. These are the shares at which GLib's `GMemoryMonitor` (since 2.86) warns:
    ``MEDIUM`` for 100 ms in 2 s of ``some``, ``CRITICAL`` for 100 ms in 2 s of ``full``, as
    ``triggers`` in gio/gmemorymonitorpsi.c has them (GNOME/glib 308709b, read 2026-11-28). GLib
    also has a ``LOW`` at 70 ms of ``some``, and is silent while more than half of the host's RAM is
    free, which says nothing of a control group: both are left out here.
    """
    stalled = {kind: float(share) for kind, share in _STALL.findall(text or "")}
    if not stalled:
        return None
    if stalled.get("full", 0.0) >= STALLED:
        return "critical"
    return "warn" if stalled.get("some", 0.0) >= STALLED else "normal"


def compressed(zswap: int | None, zram: int | None) -> int | None:
    """Bytes of both stores of compressed pages; None where neither can be told.

    ``Zswap`` is in ``/proc/meminfo`` since Linux 5.19, where zswap is built in.
    """
    known = [size for size in (zswap, zram) if size is not None]
    return sum(known) if known else None


def zram(swaps: str = "/proc/swaps", devices: str = "/sys/block") -> int | None:
    """Bytes that zram takes for the swap it holds; 0 without it, None where it does not say.

    ``mem_used_total``, the third number of ``mm_stat``: with fragmentation and metadata.
    """
    used = 0
    for line in (read(swaps) or "").splitlines():
        name = line.split(maxsplit=1)[0].rpartition("/")[2] if line else ""
        if name.startswith("zram"):
            numbers = (read(f"{devices}/{name}/mm_stat") or "").split()
            if len(numbers) < 3:
                return None
            used += int(numbers[2])
    return used


def oom_kills() -> dict[str, int]:
    """Processes of this process's control group that were ended for memory, by its folder."""
    return cgroup.oom_kills(_groups())


def _required(path: str) -> str:
    text = read_again(path)
    if text is None:
        raise OSError(f"Linux did not let {path} be read")
    return text


@cache
def _groups() -> tuple[Path, ...]:
    groups, mounts = read("/proc/self/cgroup"), read("/proc/self/mountinfo")
    if groups is None or mounts is None:  # a kernel without control groups
        return ()
    return tuple(cgroup.folders(groups, mounts))
