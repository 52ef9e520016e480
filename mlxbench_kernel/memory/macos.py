"""macOS: footprint from ``proc_pid_rusage``, pool from ``sysctlbyname`` and ``host_statistics64``.

Read 2026-11-23 in Apple's sources (apple-oss-distributions/xnu): ``struct rusage_info_v4`` in
``bsd/sys/resource.h``, ``struct vm_statistics64`` in ``osfmk/mach/vm_statistics.h``, how its
counts overlap in ``osfmk/kern/host.c`` and ``osfmk/vm/vm_resident.c``. Tested against these
formats; not run on a Mac.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache

SYSTEM = "/usr/lib/libSystem.B.dylib"
RUSAGE_INFO_V4 = 4
HOST_VM_INFO64 = 4
# ri_uuid[16], then uint64: user_time, system_time, pkg_idle_wkups, interrupt_wkups, pageins,
# wired_size, resident_size, phys_footprint, and 27 more.
RUSAGE = struct.Struct("<16s35Q")
# free, active, inactive, wire | 9 counters | purgeable, speculative | 4 counters |
# compressor, throttled, external, internal | uncompressed in compressor
VM_STATISTICS = struct.Struct("<4I9Q2I4Q4IQ")


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
    system = _system()
    buffer = ctypes.create_string_buffer(VM_STATISTICS.size)
    words = ctypes.c_uint32(VM_STATISTICS.size // 4)
    status = system.host_statistics64(_host(), HOST_VM_INFO64, buffer, ctypes.byref(words))
    if status != 0:
        raise OSError(f"macOS answered host_statistics64 with status {status}")
    return _total(), _page_size() * parse_vm_statistics(buffer.raw)


def parse_vm_statistics(raw: bytes) -> int:
    """Pages that can be had without compressing or swapping, from a ``struct vm_statistics64``.

    Free, file-backed and purgeable pages. Pages read ahead from files (speculative) are
    counted both as free and as file-backed, so they are taken off once.
    """
    fields = VM_STATISTICS.unpack(raw)
    free, purgeable, speculative, external = (fields[index] for index in (0, 13, 14, 21))
    return int(free - speculative + external + purgeable)


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
    total = ctypes.c_uint64()
    size = ctypes.c_size_t(ctypes.sizeof(total))
    answer = _system().sysctlbyname(b"hw.memsize", ctypes.byref(total), ctypes.byref(size), None, 0)
    if answer != 0:
        raise OSError(ctypes.get_errno(), "macOS did not answer sysctl hw.memsize")
    return total.value
