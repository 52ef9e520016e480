"""One look at MLX's counters, the process's footprint and the pool that it draws from."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from mlxbench_kernel.memory.host import HostMemory


@dataclass(frozen=True)
class MemorySample:
    """Memory of one rank at one moment; every number is in bytes.

    MLX's counters and the footprint can differ by a factor (ml-explore/mlx #3896: 46 GB
    against 110 GB), so both are here.

    Attributes
    ----------
    active, cache, peak
        What MLX's allocator has handed out, keeps for reuse, and had handed out at most.
    footprint
        What the operating system charges this process (see `linux.footprint` and
        `macos.footprint`). On CUDA that is memory of the host, not of the GPU.
    total, available
        The pool: the host's memory, within the control group's limit where there is one, or
        the GPU's where it has memory of its own. Available is what can be had without
        pushing out anything that would have to come back.
    limit
        Working set that Metal recommends at most for the GPU; None where there is no such cap.
    """

    active: int
    cache: int
    peak: int
    footprint: int
    total: int
    available: int
    limit: int | None


def sample() -> MemorySample:
    """Read the memory of this process and its pool now; evaluates nothing, from any thread.

    Raises
    ------
    OSError
        The system did not answer.
    """
    import mlx.core as mx

    system = _system()
    gpu = gpu_info()
    total, available = _pool(gpu)
    return MemorySample(
        active=mx.get_active_memory(),
        cache=mx.get_cache_memory(),
        peak=mx.get_peak_memory(),
        footprint=system.footprint(),
        total=total,
        available=available,
        limit=gpu.get("max_recommended_working_set_size"),
    )


def footprint() -> int:
    """Bytes that the system charges this process, see `MemorySample.footprint`."""
    return int(_system().footprint())


def pool() -> tuple[int, int]:
    """Total and available bytes of the pool that arrays are in: the GPU's own or the host's.

    Raises
    ------
    OSError
        The system did not answer.
    """
    return _pool(gpu_info())


def host_pool() -> tuple[int, int]:
    """Total and available bytes of the host, also where the GPU has a pool of its own.

    Raises
    ------
    OSError
        The system did not answer.
    """
    total, available = _system().pool()
    return int(total), int(available)


def host_memory() -> HostMemory:
    """All that the system tells of the host's memory; see `host_pool`."""
    memory: HostMemory = _system().host()
    return memory


def oom_kills() -> dict[str, int]:
    """How many processes the system has ended for memory (`cgroup.oom_kills`); {} on macOS."""
    if sys.platform == "darwin":
        return {}
    from mlxbench_kernel.memory import linux

    return linux.oom_kills()


def _system() -> ModuleType:
    if sys.platform == "darwin":
        from mlxbench_kernel.memory import macos as system
    else:
        from mlxbench_kernel.memory import linux as system
    return system


def _pool(gpu: dict[str, Any]) -> tuple[int, int]:
    # CUDA's GPU has a pool of its own, Metal's shares the host's (`mx.device_info`).
    if "free_memory" in gpu:
        return int(gpu["total_memory"]), int(gpu["free_memory"])
    return host_pool()


def gpu_info() -> dict[str, Any]:
    """`mx.device_info` of the GPU that is used by default, now; empty where there is none."""
    import mlx.core as mx

    if not _has_gpu():
        return {}
    return dict(mx.device_info(mx.Device(mx.gpu, gpu_index())))


def gpu_index() -> int:
    """Number of the GPU that is used by default, or would be."""
    import mlx.core as mx

    default = mx.default_device()  # a user may have made it the CPU: arrays stay in one pool
    # MLX 0.32.4 has no name for a device's number, but compares it.
    gpus = range(mx.device_count(mx.gpu) if default.type == mx.gpu else 0)
    return next((number for number in gpus if mx.Device(mx.gpu, number) == default), 0)


@cache
def _has_gpu() -> bool:
    import mlx.core as mx

    return bool(mx.is_available(mx.gpu))
