"""The unified pool of a host, and what one process holds of it.

`sample` (of this process) and `pools` (of the host) are cheap, a tenth of a millisecond, and may
be called from any thread. `limits` reads and sets MLX's limits; `explain` tells of an allocation
that failed. What differs between systems is in `linux` (with `cgroup`), `macos` and `cuda`.
``python -m mlxbench_kernel.memory`` draws the pools in a terminal.
"""

from mlxbench_kernel.memory.limits import Limits
from mlxbench_kernel.memory.overflow import explain
from mlxbench_kernel.memory.pools import Pool, gpu_used, pools
from mlxbench_kernel.memory.samples import MemorySample, host_pool, oom_kills, sample
from mlxbench_kernel.units import format_bytes

__all__ = [
    "Limits",
    "MemorySample",
    "Pool",
    "explain",
    "format_bytes",
    "gpu_used",
    "host_pool",
    "oom_kills",
    "pools",
    "sample",
]
