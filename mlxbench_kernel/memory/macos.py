"""macOS: footprint from ``proc_pid_rusage``, pool from ``sysctlbyname`` and ``host_statistics64``.

Read 2026-11-23 in Apple's sources (apple-oss-distributions/xnu): ``struct rusage_info_v4`` in
``bsd/sys/resource.h``, ``struct vm_statistics64`` in ``osfmk/mach/vm_statistics.h``, how its
counts overlap in ``osfmk/kern/host.c`` and ``osfmk/vm/vm_resident.c``. Tested against these
formats; not run on a Mac.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
from functools import cache

from mlxbench_kernel.memory.host import HostMemory

SYSTEM = "/usr/lib/libSystem.B.dylib"
RUSAGE_INFO_V4 = 4
HOST_VM_INFO64 = 4
# ri_uuid[16], then uint64: user_time, system_time, pkg_idle_wkups, interrupt_wkups, pageins,
# wired_size, resident_size, phys_footprint, and 27 more.
RUSAGE = struct.Struct("<16s35Q")
# free, active, inactive, wire | 9 counters | purgeable, speculative | 4 counters |
# compressor, throttled, external, internal | uncompressed in compressor
VM_STATISTICS = struct.Struct("<4I9Q2I4Q4IQ")
# struct xsw_usage: total, avail, used, page size, encrypted.
SWAP_USAGE = struct.Struct("<3QIi")
# NOTE_MEMORYSTATUS_PRESSURE_NORMAL, _WARN and _CRITICAL, which the kernel makes of its own levels.
PRESSURE: dict[int | None, str] = {1: "normal", 2: "warn", 4: "critical"}
IOREG = ["ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator"]
IN_USE = re.compile(r'"In use system memory"\s*=\s*(\d+)')


def footprint() -> int:
    """``ri_phys_footprint`` of this process in bytes: what Activity Monitor shows as Memory."""
    buffer = ctypes.create_string_buffer(RUSAGE.size)
    if _system().proc_pid_rusage(os.getpid(), RUSAGE_INFO_V4, buffer) != 0:
        raise OSError(ctypes.get_errno(), "macOS did not answer proc_pid_rusage")
    return parse_rusage(buffer.raw)


def parse_rusage(raw: bytes) -> int:
    """``ri_phys_footprint`` in bytes from a ``struct rusage_info_v4``."""
    return int(RUSAGE.unpack(raw)[8])


def pool() -> tuple[int, int]:
    """Total and available bytes of this Mac."""
    return _total(), _page_size() * parse_vm_statistics(_vm_statistics())


def parse_vm_statistics(raw: bytes) -> int:
    """Pages that can be had without compressing or swapping, from a ``struct vm_statistics64``.

    Free, file-backed and purgeable pages. Pages read ahead from files (speculative) are
    counted both as free and as file-backed, so they are taken off once.
    """
    fields = VM_STATISTICS.unpack(raw)
    free, purgeable, speculative, external = (fields[index] for index in (0, 13, 14, 21))
    return int(free - speculative + external + purgeable)


def host() -> HostMemory:
    """All that macOS tells of the memory of this Mac."""
    raw, page = _vm_statistics(), _page_size()
    fields = VM_STATISTICS.unpack(raw)
    swap_total, swap_used = swap_usage()
    return HostMemory(
        total=_total(),
        available=page * parse_vm_statistics(raw),
        wired=page * int(fields[3]),
        compressed=page * int(fields[19]),
        swap_used=swap_used,
        swap_total=swap_total,
        pressure=PRESSURE.get(_sysctl_number("kern.memorystatus_vm_pressure_level")),
    )


def swap_usage() -> tuple[int | None, int | None]:
    """Total and used bytes of swap (``vm.swapusage``); None where macOS does not say."""
    raw = _sysctl("vm.swapusage", SWAP_USAGE.size)
    if raw is None or len(raw) != SWAP_USAGE.size:
        return None, None
    total, _, used, _, _ = SWAP_USAGE.unpack(raw)
    return int(total), int(used)


def wired_limit() -> int | None:
    """Bytes that ``iogpu.wired_limit_mb`` lets the GPU have; None for the system's default.

    In MiB (``sudo sysctl iogpu.wired_limit_mb=…``, as `mx.set_wired_limit` documents);
    0 stands for the default, and Intel Macs have no such name.
    """
    number = _sysctl_number("iogpu.wired_limit_mb")
    return number * 1024**2 if number else None


def gpu_in_use() -> int | None:
    """Bytes of the pool that the GPU uses for all programs; None where macOS does not say.

    Starts ``ioreg``, which needs no rights: some tens of milliseconds.
    """
    try:
        done = subprocess.run(IOREG, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_ioreg(done.stdout)


def parse_ioreg(text: str) -> int | None:
    """``In use system memory`` in bytes of the accelerators of ``ioreg -r -c IOAccelerator``.

    Not ``In use system memory (driver)``, which stands beside it. None without it.
    """
    found = [int(number) for number in IN_USE.findall(text)]
    return sum(found) if found else None


@cache
def _system() -> ctypes.CDLL:
    system = ctypes.CDLL(SYSTEM, use_errno=True)
    system.proc_pid_rusage.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    system.sysctlbyname.argtypes = [
        ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t),
        ctypes.c_void_p, ctypes.c_size_t,
    ]  # fmt: skip
    system.mach_host_self.restype = ctypes.c_uint32
    system.host_page_size.argtypes = [ctypes.c_uint32, ctypes.POINTER(ctypes.c_size_t)]
    system.host_statistics64.argtypes = [
        ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32),
    ]  # fmt: skip
    return system


@cache
def _host() -> int:
    """The host's port; each call of ``mach_host_self`` would take another right to it."""
    return int(_system().mach_host_self())


@cache
def _page_size() -> int:
    size = ctypes.c_size_t()
    if _system().host_page_size(_host(), ctypes.byref(size)) != 0:
        raise OSError("macOS did not answer host_page_size")
    return size.value


@cache
def _total() -> int:
    total = _sysctl_number("hw.memsize")
    if total is None:
        raise OSError(ctypes.get_errno(), "macOS did not answer sysctl hw.memsize")
    return total


def _vm_statistics() -> bytes:
    """A ``struct vm_statistics64``."""
    buffer = ctypes.create_string_buffer(VM_STATISTICS.size)
    words = ctypes.c_uint32(VM_STATISTICS.size // 4)
    status = _system().host_statistics64(_host(), HOST_VM_INFO64, buffer, ctypes.byref(words))
    if status != 0:
        raise OSError(f"macOS answered host_statistics64 with status {status}")
    return buffer.raw


def _sysctl(name: str, size: int) -> bytes | None:
    """Up to `size` bytes of what a name stands for; None where macOS does not know it."""
    buffer = ctypes.create_string_buffer(size)
    length = ctypes.c_size_t(size)
    answer = _system().sysctlbyname(name.encode(), buffer, ctypes.byref(length), None, 0)
    return buffer.raw[: length.value] if answer == 0 else None


def _sysctl_number(name: str) -> int | None:
    """A number of four or eight bytes, as the name has it."""
    raw = _sysctl(name, 8)
    return int.from_bytes(raw, sys.byteorder) if raw else None
