"""The unified pool of a host, and what one process holds of it.

`sample` (of this process) and `pools` (of the host) are cheap, a tenth of a millisecond, and may
be called from any thread. `limits` reads and sets MLX's limits; `explain` tells of an allocation
that failed. What differs between systems is in `linux` (with `cgroup`), `macos` and `cuda`.
``python -m mlxbench_kernel.memory`` draws the pools in a terminal.

What holds it: `attribute` finds the names behind MLX's buffers, and `HOLDERS` is where those
register who keep arrays beside the user's variables. `grew` compares two moments, `freeable` says
what deleting would free, `find_growth` and `causes` whether memory grows step after step, and why.
`record` keeps samples over time.
"""

from mlxbench_kernel.memory.attribution import attribute
from mlxbench_kernel.memory.changes import Freeable, Grown, freeable, grew
from mlxbench_kernel.memory.folding import folded
from mlxbench_kernel.memory.growth import Cause, Growth, causes, find_growth
from mlxbench_kernel.memory.holders import HOLDERS
from mlxbench_kernel.memory.holdings import Holdings
from mlxbench_kernel.memory.limits import Limits
from mlxbench_kernel.memory.overflow import explain
from mlxbench_kernel.memory.pools import Pool, gpu_used, pools
from mlxbench_kernel.memory.samples import MemorySample, host_pool, oom_kills, sample
from mlxbench_kernel.units import format_bytes

__all__ = [
    "HOLDERS",
    "Cause",
    "Freeable",
    "Grown",
    "Growth",
    "Holdings",
    "Limits",
    "MemorySample",
    "Pool",
    "attribute",
    "causes",
    "explain",
    "find_growth",
    "folded",
    "format_bytes",
    "freeable",
    "gpu_used",
    "grew",
    "host_pool",
    "oom_kills",
    "pools",
    "sample",
]
