"""The unified pool of a host, and what one process holds of it.

`sample` is cheap (well under a millisecond) and may be called from any thread. What differs
between systems is in `linux` (with `cgroup`) and `macos`.
"""

from mlxbench_kernel.memory.pools import Pool, gpu_used, pools
from mlxbench_kernel.memory.samples import MemorySample, host_pool, oom_kills, sample
from mlxbench_kernel.units import format_bytes

__all__ = [
    "MemorySample",
    "Pool",
    "format_bytes",
    "gpu_used",
    "host_pool",
    "oom_kills",
    "pools",
    "sample",
]
