"""An allocation that failed, told with its size, what is held, and what can be done.

What MLX raises (ml-explore/mlx 846d176, 2026-08-22) is in ``mlx/backend/metal/allocator.cpp``,
``mlx/backend/metal/device.cpp``, ``mlx/backend/cuda/allocator.cpp`` and ``mlx/backend/cuda/
utils.cpp``. Its CPU allocator raises nothing: it does not look at what ``malloc`` returns, and
the process dies of SIGSEGV (seen with 0.32.4), or of SIGKILL where the system had promised more
memory than there is.
"""

from __future__ import annotations

import re

from mlxbench_kernel.memory import samples
from mlxbench_kernel.memory.samples import MemorySample
from mlxbench_kernel.units import format_bytes

# Metal, one buffer: "[metal::malloc] Attempting to allocate … bytes which is greater than the
# maximum allowed buffer size of … bytes."
_TOO_LARGE = re.compile(
    r"Attempting to allocate (\d+) bytes.* maximum allowed buffer size of (\d+)"
)
# "[metal::malloc] Resource limit (499000) exceeded."
_TOO_MANY = re.compile(r"\[metal::malloc\] Resource limit \((\d+)\) exceeded")
# Metal and CUDA: "[malloc] Unable to allocate … bytes."; "[malloc_or_wait]" until MLX 0.24.
_REFUSED = re.compile(r"\[malloc(?:_or_wait)?\] Unable to allocate (\d+) bytes")
# Metal, while the GPU runs: "[METAL] Command buffer execution failed: Insufficient Memory
# (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."; CUDA: "cudaMallocAsync(&data, size,
# stream) failed: out of memory" and any other call.
_RAN_OUT = re.compile(
    r"kIOGPUCommandBufferCallbackErrorOutOfMemory|\bcu\w+\(.*failed: out of memory"
)

_DO = "delete what is not needed, take a smaller batch or context, mx.clear_cache()"


def explain(error: BaseException) -> str | None:
    """What went wrong where an allocation failed, and what to do; from any thread.

    Parameters
    ----------
    error
        What a cell raised. What it was raised ``from`` is looked at too.

    Returns
    -------
    str or None
        One line with the size asked for where MLX says it, what this process holds, what is
        left and what to do; None where the error is not about memory. Evaluates nothing and
        raises nothing.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        said = _explain(cause)
        if said is not None:
            return said
        cause = cause.__cause__
    return None


def _explain(error: BaseException) -> str | None:
    text = str(error)
    if match := _TOO_LARGE.search(text):
        asked, most = map(int, match.groups())
        return (
            f"an array of {format_bytes(asked)} is more than Metal allows for one buffer, "
            f"{format_bytes(most)}, however much is free: split it, or take a smaller batch or "
            f"context{_held()}"
        )
    if match := _TOO_MANY.search(text):
        return (
            f"there are more than the {int(match.group(1)):,} buffers that Metal allows, whatever "
            "their size: mx.clear_cache(), and join many small arrays with mx.stack or "
            f"mx.concatenate{_held()}"
        )
    if match := _REFUSED.search(text):
        return _ran_out(int(match.group(1)))
    if _RAN_OUT.search(text) or isinstance(error, MemoryError):
        return _ran_out(None)
    return None


def _ran_out(asked: int | None) -> str:
    said = "out of memory" if asked is None else f"out of memory: {format_bytes(asked)} asked for"
    memory = _sample()
    if memory is None:
        return f"{said}; {_DO}; %mlx_mem shows what holds it"
    do = _DO
    if asked is not None and asked > memory.total:
        do = "it cannot fit here: take a smaller batch or context, or shard it over more ranks"
    elif memory.limit is not None and memory.active + (asked or 0) > memory.limit:
        do += (
            f"; the GPU may have {format_bytes(memory.limit)} of the pool, which sudo sysctl "
            "iogpu.wired_limit_mb=… in a terminal can raise"
        )
    return f"{said}{_held(memory)}; {do}; %mlx_mem shows what holds it"


def _held(memory: MemorySample | None = None) -> str:
    memory = memory or _sample()
    if memory is None:
        return ""
    return (
        f" (MLX holds {format_bytes(memory.active)} active and {format_bytes(memory.cache)} "
        f"cached, its memory limit is {format_bytes(_memory_limit())}; "
        f"{format_bytes(memory.available)} of {format_bytes(memory.total)} are available)"
    )


def _memory_limit() -> int:
    import mlx.core as mx

    return int(mx.get_memory_limit())


def _sample() -> MemorySample | None:
    try:
        return samples.sample()
    except (OSError, RuntimeError):  # the system or, after a fault, the GPU does not answer
        return None
