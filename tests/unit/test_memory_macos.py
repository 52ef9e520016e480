"""What macOS says about memory, in the formats of Apple's headers; none of it ran on a Mac.

Sources: apple-oss-distributions/xnu, ``bsd/sys/resource.h``, ``osfmk/mach/vm_statistics.h`` and
``osfmk/mach/host_info.h``, read 2026-11-23; ``bsd/sys/sysctl.h`` (``struct xsw_usage``) and
``bsd/kern/kern_memorystatus_notify.c`` (the pressure level), read 2026-11-28.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxbench_kernel import memory
from mlxbench_kernel.memory import macos, samples

GB = 10**9

# Keys of mlx/backend/metal/device_info.cpp (ml-explore/mlx 846d176, 2026-08-22).
METAL = {"device_name": "Apple M4 Max", "max_recommended_working_set_size": 115_448_725_504}

# What ``ioreg -r -d 1 -w 0 -c IOAccelerator`` prints on an Apple M4, the lines that matter, as
# quoted in a public test of a monitor of Macs; read 2026-11-28. The driver's share is beside it.
IOREG = """\
+-o AGXAcceleratorG16G  <class AGXAcceleratorG16G, id 0x10000050b, registered, matched, active, \
busy 0 (655 ms), retain 51>
    {
      "PerformanceStatistics" = {"In use system memory (driver)"=0,\
"Alloc system memory"=1574862848,"Tiler Utilization %"=20,\
"Device Utilization %"=21,"In use system memory"=351141888}
      "model" = "Apple M4"
      "gpu-core-count" = 10
    }
"""

# The five calls as macOS declares them, with the structs of its headers, as a library that can
# be built on any system. The answers are those of a Mac with 128 GiB and 16 KiB pages.
LIBSYSTEM = r"""
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef uint32_t natural_t;
struct rusage_info_v4 {
  uint8_t ri_uuid[16];
  uint64_t ri_user_time, ri_system_time, ri_pkg_idle_wkups, ri_interrupt_wkups, ri_pageins,
      ri_wired_size, ri_resident_size, ri_phys_footprint, ri_proc_start_abstime,
      ri_proc_exit_abstime, ri_child_user_time, ri_child_system_time, ri_child_pkg_idle_wkups,
      ri_child_interrupt_wkups, ri_child_pageins, ri_child_elapsed_abstime, ri_diskio_bytesread,
      ri_diskio_byteswritten, ri_cpu_time_qos_default, ri_cpu_time_qos_maintenance,
      ri_cpu_time_qos_background, ri_cpu_time_qos_utility, ri_cpu_time_qos_legacy,
      ri_cpu_time_qos_user_initiated, ri_cpu_time_qos_user_interactive, ri_billed_system_time,
      ri_serviced_system_time, ri_logical_writes, ri_lifetime_max_phys_footprint,
      ri_instructions, ri_cycles, ri_billed_energy, ri_serviced_energy,
      ri_interval_max_phys_footprint, ri_runnable_time;
};
struct vm_statistics64 {
  natural_t free_count, active_count, inactive_count, wire_count;
  uint64_t zero_fill_count, reactivations, pageins, pageouts, faults, cow_faults, lookups, hits,
      purges;
  natural_t purgeable_count, speculative_count;
  uint64_t decompressions, compressions, swapins, swapouts;
  natural_t compressor_page_count, throttled_count, external_page_count, internal_page_count;
  uint64_t total_uncompressed_pages_in_compressor;
} __attribute__((aligned(8)));

int proc_pid_rusage(int pid, int flavor, void *buffer) {
  if (pid != getpid() || flavor != 4) { errno = EINVAL; return -1; }
  struct rusage_info_v4 info;
  memset(&info, 0x55, sizeof info);
  info.ri_phys_footprint = 110000000000;
  memcpy(buffer, &info, sizeof info);
  return 0;
}

struct xsw_usage {
  uint64_t xsu_total, xsu_avail, xsu_used;
  uint32_t xsu_pagesize;
  int xsu_encrypted;
};

static int answer(void *value, size_t *size, const void *from, size_t length) {
  if (*size < length) { errno = ENOMEM; return -1; }
  memcpy(value, from, length);
  *size = length;
  return 0;
}

uint32_t pressure_level = 2, wired_limit_mb = 0;

int sysctlbyname(const char *name, void *value, size_t *size, void *new_value, size_t new_size) {
  uint64_t memsize = 137438953472;
  struct xsw_usage swap = {4294967296, 3221225472, 1073741824, 16384, 1};
  if (new_value || new_size) { errno = EPERM; return -1; }
  if (!strcmp(name, "hw.memsize")) return answer(value, size, &memsize, 8);
  if (!strcmp(name, "vm.swapusage")) return answer(value, size, &swap, sizeof swap);
  if (!strcmp(name, "kern.memorystatus_vm_pressure_level"))
    return answer(value, size, &pressure_level, 4);
  if (!strcmp(name, "iogpu.wired_limit_mb") && wired_limit_mb != 99)
    return answer(value, size, &wired_limit_mb, 4);
  errno = ENOENT;
  return -1;
}

static int rights;
natural_t mach_host_self(void) { return 0xf0000001u + rights++; }

int host_page_size(natural_t host, uintptr_t *size) {
  if (host != 0xf0000001u) return 4;
  *size = 16384;
  return 0;
}

int host_statistics64(natural_t host, int flavor, void *info, natural_t *count) {
  if (host != 0xf0000001u || flavor != 4 || *count != sizeof(struct vm_statistics64) / 4) return 4;
  struct vm_statistics64 all;
  memset(&all, 0x55, sizeof all);
  all.free_count = 100000;
  all.speculative_count = 40000;
  all.external_page_count = 300000;
  all.purgeable_count = 7000;
  all.wire_count = 500000;
  all.compressor_page_count = 60000;
  memcpy(info, &all, sizeof all);
  return 0;
}
"""


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    cached = (macos._system, macos._host, macos._page_size, macos._total)
    for function in cached:
        function.cache_clear()
    source = tmp_path / "libsystem.c"
    source.write_text(LIBSYSTEM)
    library = tmp_path / "libSystem.B.dylib"
    compiler = shutil.which("cc")
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr(macos, "SYSTEM", str(library))
    yield library
    for function in cached:
        function.cache_clear()


def test_every_field_is_where_the_headers_have_it(mac: Path) -> None:
    assert macos.footprint() == 110 * GB
    # Read-ahead pages are in both counts: 100 000 - 40 000 + 300 000 + 7 000 pages.
    assert macos.pool() == (137_438_953_472, 367_000 * 16_384)
    assert macos.pool() == macos.pool(), "the host's port is taken once"


def test_a_call_that_fails_says_so(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macos, "RUSAGE_INFO_V4", 99)
    with pytest.raises(OSError, match="proc_pid_rusage"):
        macos.footprint()
    monkeypatch.setattr(macos, "HOST_VM_INFO64", 99)
    with pytest.raises(OSError, match="host_statistics64 with status 4"):
        macos.pool()


def test_the_structs_have_the_sizes_that_macos_expects() -> None:
    assert macos.RUSAGE.size == 296
    assert macos.VM_STATISTICS.size == 38 * 4, "HOST_VM_INFO64_REV1_COUNT is 38 words"
    assert macos.SWAP_USAGE.size == 32


def test_footprint_is_not_the_resident_size() -> None:
    fields = [0] * 35
    fields[6], fields[7] = 46 * GB, 110 * GB  # ri_resident_size, ri_phys_footprint
    assert macos.parse_rusage(struct.pack("<16s35Q", os.urandom(16), *fields)) == 110 * GB


def test_the_whole_pool_of_a_mac(mac: Path) -> None:
    seen = macos.host()
    assert (seen.total, seen.available) == macos.pool()
    assert (seen.wired, seen.compressed) == (500_000 * 16_384, 60_000 * 16_384)
    assert (seen.swap_used, seen.swap_total) == (1024**3, 4 * 1024**3)
    level = ctypes.c_uint32.in_dll(macos._system(), "pressure_level")
    # NOTE_MEMORYSTATUS_PRESSURE_NORMAL, _WARN, _CRITICAL; another is not known.
    for number, word in ((1, "normal"), (2, "warn"), (4, "critical"), (8, None)):
        level.value = number
        assert macos.host().pressure == word


def test_what_macos_does_not_say_is_unknown(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, size: int) -> bytes | None:
        return whole(name, size) if name == "hw.memsize" else None

    whole = macos._sysctl
    monkeypatch.setattr(macos, "_sysctl", refused)
    seen = macos.host()
    assert (seen.swap_used, seen.swap_total, seen.pressure) == (None, None, None)
    assert seen.total == 137_438_953_472


def test_the_limit_of_the_gpu_is_in_mebibytes_and_0_is_the_default(mac: Path) -> None:
    """``sudo sysctl iogpu.wired_limit_mb=…``, as the docs of `mx.set_wired_limit` have it."""
    limit = ctypes.c_uint32.in_dll(macos._system(), "wired_limit_mb")
    assert macos.wired_limit() is None
    limit.value = 26_624
    assert macos.wired_limit() == 26_624 * 1024**2
    limit.value = 99  # here: a Mac that has no such name
    assert macos.wired_limit() is None


def test_a_macs_one_pool(mac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(samples, "gpu_info", lambda: METAL)
    (pool,) = memory.pools()
    assert (pool.name, pool.total) == ("unified", 137_438_953_472)
    assert (pool.pressure, pool.swap_used, pool.limited_by) == ("warn", 1024**3, None)
    assert pool.cap == METAL["max_recommended_working_set_size"]
    assert pool.gpu_used is None, "to ask takes long"
    ctypes.c_uint32.in_dll(macos._system(), "wired_limit_mb").value = 120_000
    assert memory.pools()[0].cap == 120_000 * 1024**2, "MLX's figure is of the process's start"
    monkeypatch.setattr(samples, "gpu_info", dict)
    (pool,) = memory.pools()
    assert (pool.name, pool.cap) == ("host", None), "MLX without Metal"
    command = tmp_path / "ioreg"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{IOREG}END\n")
    command.chmod(0o755)
    monkeypatch.setattr(macos, "IOREG", [str(command)])
    assert memory.gpu_used(max_age=0) == 351_141_888


def test_what_the_gpu_uses_is_not_the_drivers_share() -> None:
    assert macos.parse_ioreg(IOREG) == 351_141_888
    assert macos.parse_ioreg(IOREG.replace('"In use system memory"=351141888', "")) is None
    assert macos.parse_ioreg("") is None


def test_the_gpus_use_is_asked_of_ioreg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer").write_text(IOREG)
    command = tmp_path / "ioreg"
    command.write_text(
        f'#!/bin/sh\n[ "$*" = "-r -d 1 -w 0 -c IOAccelerator" ] || exit 1\n'
        f"cat {tmp_path / 'answer'}\n"
    )
    command.chmod(0o755)
    monkeypatch.setattr(macos, "IOREG", [str(command), *macos.IOREG[1:]])
    assert macos.gpu_in_use() == 351_141_888
    monkeypatch.setattr(macos, "IOREG", [str(command), "-r"])
    assert macos.gpu_in_use() is None, "it failed"
    monkeypatch.setattr(macos, "IOREG", [str(tmp_path / "missing")])
    assert macos.gpu_in_use() is None, "there is none"
