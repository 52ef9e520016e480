"""The pools of memory that a process can draw from: the host's, and a GPU's of its own."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass

from mlxbench_kernel.memory import cuda, samples

CUDA = "cuda"  # instead of the name in the key of a GPU's pool
PoolKey = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Pool:
    """One pool of memory of a host at one moment, in bytes.

    What this system cannot tell is None, never 0.

    Attributes
    ----------
    name
        ``"unified"`` (Metal: CPU and GPU share it), ``"host"``, or ``"cuda:0"``.
    total
        All of it; within a container or a Slurm job, what its limit lets it have.
    available
        Can be had without pushing out anything that would have to come back.
    wired
        Cannot be moved: macOS's wired pages, which include what Metal keeps resident for
        programs; on Linux what the kernel holds and cannot give up (`linux.WIRED`).
    compressed
        Taken by compressed pages: macOS's compressor, Linux's zswap and zram.
    swap_used, swap_total
        Bytes; macOS makes its swap larger as it needs.
    pressure
        ``"normal"``, ``"warn"`` or ``"critical"``, as macOS says itself; on Linux see
        `linux.pressure`.
    cap
        Most that the GPU may have of a unified pool: what ``sysctl iogpu.wired_limit_mb`` is set
        to, else Metal's ``max_recommended_working_set_size``.
    gpu_used
        Of all programs. For CUDA known each time; for Metal ask `gpu_used`, which is slow.
    uuid
        Of a GPU with a pool of its own: ranks that see different GPUs as ``cuda:0`` differ in it.
    limited_by
        Folder of the control group whose limit `total` is: ranks of one host in different
        groups draw from different pools.
    """

    name: str
    total: int
    available: int
    wired: int | None = None
    compressed: int | None = None
    swap_used: int | None = None
    swap_total: int | None = None
    pressure: str | None = None
    cap: int | None = None
    gpu_used: int | None = None
    uuid: str | None = None
    limited_by: str | None = None

    @property
    def used(self) -> int:
        """Bytes that are not available."""
        return max(0, self.total - self.available)

    @property
    def key(self) -> PoolKey:
        """Equal for the same pool of one host, whichever rank tells of it."""
        return (self.name if self.uuid is None else CUDA, self.uuid, self.limited_by)


def pools() -> tuple[Pool, ...]:
    """The pools that this process draws from, now: the GPU's own first, then the host's.

    Quick, from any thread; evaluates nothing. Again and again on Linux 6.18 without a GPU it took
    55 to 85 µs (medians, measured 2026-11-28 on two shared cores, in a control group).

    Raises
    ------
    OSError
        The system did not answer.
    """
    found = []
    device = cuda.device()
    if device is not None:
        found.append(
            Pool(
                name=f"cuda:{device.index}",
                total=device.total,
                available=device.free,
                gpu_used=device.used,
                uuid=device.uuid,
            )
        )
    host = samples.host_memory()
    info = samples.gpu_info() if device is None else {}
    found.append(
        Pool(
            name="unified" if info else "host",
            total=host.total,
            available=host.available,
            wired=host.wired,
            compressed=host.compressed,
            swap_used=host.swap_used,
            swap_total=host.swap_total,
            pressure=host.pressure,
            cap=_cap(info.get("max_recommended_working_set_size")),
            limited_by=None if host.limited_by is None else str(host.limited_by),
        )
    )
    return tuple(found)


def gpu_used(max_age: float = 5.0) -> int | None:
    """Bytes of the pool that the GPU uses for all programs; None where nobody tells.

    On macOS this starts a process (``ioreg``), so an answer is kept for `max_age` seconds, and
    a thread that asks meanwhile waits for it. Nothing for the quick path.
    """
    device = cuda.device()
    if device is not None:
        return device.used
    return _IN_USE.read(max_age) if sys.platform == "darwin" else None


class _InUse:
    """The last answer of ``ioreg``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: float | None = None
        self._answer: int | None = None

    def read(self, max_age: float) -> int | None:
        from mlxbench_kernel.memory import macos

        with self._lock:
            if self._at is None or time.monotonic() - self._at >= max_age:
                self._answer = macos.gpu_in_use()
                self._at = time.monotonic()
            return self._answer


_IN_USE = _InUse()


def _cap(recommended: int | None) -> int | None:
    """What Metal lets the GPU have; MLX's own figure is as of the start of the process."""
    if sys.platform == "darwin" and recommended is not None:
        from mlxbench_kernel.memory import macos

        return macos.wired_limit() or recommended
    return recommended
