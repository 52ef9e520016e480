"""MLX's limits on memory as one thing: what they are, set them, and say before what that does.

Three allocators, three meanings (ml-explore/mlx 846d176, 2026-08-22): ``mlx/backend/metal/
allocator.cpp``, ``mlx/backend/cuda/allocator.cpp``, ``mlx/backend/no_gpu/allocator.cpp``; what
the memory limit does to evaluation is in ``mlx/transforms.cpp`` (`eval_impl`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import samples
from mlxbench_kernel.units import format_bytes, parse_bytes

Size = int | str
# Metal starts to give cached buffers back at the least of the memory limit and this share of
# what the GPU may have (`MetalAllocator.set_memory_limit`).
RECLAIMED_AT = 0.95
# A cache that has to give up this much is cleared (`BufferCache.release_cached_buffers`).
CLEARED_AT = 0.9


@dataclass(frozen=True)
class Limits:
    """Limits of MLX in this process, in bytes.

    Attributes
    ----------
    memory
        `mx.get_memory_limit`: beyond it evaluation waits. It refuses nothing.
    cache
        Most that MLX keeps of freed buffers; None where it is not known, see `current`.
    wired
        What macOS keeps resident of MLX's buffers; None where it is not known (nobody can ask
        for it, so: until `apply` has set it) or there is no such limit (CUDA, CPU).
    """

    memory: int | None
    cache: int | None
    wired: int | None


NAMES = tuple(each.name for each in fields(Limits))


def current(*, idle: bool = False) -> Limits:
    """The limits now; from any thread.

    MLX tells only the memory limit. The cache's is found by setting it and putting it back,
    which changes nothing with Metal and CUDA. The CPU's allocator first waits for all work that
    is under way, and holds the interpreter meanwhile: a rank in a collective would be stuck.
    There the last that was seen is given, which a call of `mx.set_cache_limit` since then may
    have changed; where more is cached than that allows, None.

    Parameters
    ----------
    idle
        Nothing is being evaluated by this process: ask on the CPU too.
    """
    import mlx.core as mx

    if idle or allocator() != "cpu":
        most = 2**63  # more than is cached, so that nothing is given back
        known = mx.set_cache_limit(most)
        mx.set_cache_limit(known)
        _SEEN.limits = replace(_SEEN.limits, cache=known)
    elif _SEEN.limits.cache is not None and mx.get_cache_memory() > _SEEN.limits.cache:
        _SEEN.limits = replace(_SEEN.limits, cache=None)
    return replace(_SEEN.limits, memory=mx.get_memory_limit())


def apply(
    *, memory: Size | None = None, cache: Size | None = None, wired: Size | None = None
) -> Limits:
    """Set limits of MLX in this process; all of them or, where one is wrong, none.

    With MLX's CPU allocator a cache limit waits for all work under way, so call it where cells
    run and not beside them.

    Parameters
    ----------
    memory, cache, wired
        Bytes, or a size as `parse_bytes` reads it, percent being of the pool; None leaves it.

    Returns
    -------
    Limits
        As they were before; `apply` with its values that are known puts them back.

    Raises
    ------
    UsageError
        Not a size, negative, above the pool, or a wired limit on a system without one.
    """
    import mlx.core as mx

    asked = check(memory=memory, cache=cache, wired=wired)
    before = replace(_SEEN.limits, memory=mx.get_memory_limit())
    if asked.memory is not None:
        before = replace(before, memory=mx.set_memory_limit(asked.memory))
    if asked.cache is not None:
        before = replace(before, cache=mx.set_cache_limit(asked.cache))
        _SEEN.limits = replace(_SEEN.limits, cache=asked.cache)
    if asked.wired is not None:
        before = replace(before, wired=mx.set_wired_limit(asked.wired))
        _SEEN.limits = replace(_SEEN.limits, wired=asked.wired)
    return before


def check(
    *, memory: Size | None = None, cache: Size | None = None, wired: Size | None = None
) -> Limits:
    """The limits that are asked for, in bytes; None for those that are not.

    Raises
    ------
    UsageError
        As of `apply`.
    """
    total, _ = samples.pool()
    sizes: dict[str, int | None] = {}
    for name, size in (("memory", memory), ("cache", cache), ("wired", wired)):
        sizes[name] = None if size is None else _checked(name, size, total)
    if sizes["wired"] is not None:
        _check_wired(sizes["wired"])
    return Limits(**sizes)


def said_beforehand(
    *, memory: Size | None = None, cache: Size | None = None, wired: Size | None = None
) -> str:
    """What `apply` with the same arguments would do now: a line for each limit.

    Raises
    ------
    UsageError
        As of `apply`.
    """
    asked = check(memory=memory, cache=cache, wired=wired)
    lines = []
    if asked.memory is not None:
        lines.append(_said_of_memory(asked.memory))
    if asked.cache is not None:
        lines.append(_said_of_cache(asked.cache))
    if asked.wired is not None:
        lines.append(_said_of_wired(asked.wired))
    return "\n".join(lines)


def clear_cache() -> int:
    """`mx.clear_cache`; returns how many bytes MLX gave back.

    With MLX's CPU allocator it waits for all work under way, as a cache limit does.
    """
    import mlx.core as mx

    before: int = mx.get_cache_memory()
    mx.clear_cache()
    return max(0, before - mx.get_cache_memory())


def reset_peak() -> int:
    """`mx.reset_peak_memory`; returns the peak until now, in bytes. The next starts at 0."""
    import mlx.core as mx

    before: int = mx.get_peak_memory()
    mx.reset_peak_memory()
    return before


def allocator() -> str:
    """Which of MLX's allocators this process has: ``"metal"``, ``"cuda"`` or ``"cpu"``."""
    info = samples.gpu_info()
    if not info:
        return "cpu"
    return "cuda" if "free_memory" in info else "metal"


class _Seen:
    """What was seen last of the limits that MLX does not tell."""

    limits = Limits(memory=None, cache=None, wired=None)


_SEEN = _Seen()


def _checked(name: str, size: Size, total: int) -> int:
    try:
        count = parse_bytes(size, total)
    except UsageError as error:
        raise UsageError(f"{name} limit: {error}") from None
    if count > total:
        raise UsageError(
            f"{name} limit: {format_bytes(count)} is more than the pool, "
            f"{format_bytes(total)}: type at most that, or a share as 75%"
        )
    return count


def _check_wired(count: int) -> None:
    kind = allocator()
    if kind != "metal":
        system = "CUDA" if kind == "cuda" else "the CPU"
        raise UsageError(f"wired limit: MLX has none with {system}; type memory or cache instead")
    cap = samples.gpu_info()["max_recommended_working_set_size"]
    if count > cap:  # MLX raises
        raise UsageError(
            f"wired limit: {format_bytes(count)} is more than the {format_bytes(cap)} that macOS "
            f"lets the GPU have: type at most that, or raise it in a terminal with "
            f"sudo sysctl iogpu.wired_limit_mb={-(-count // 1024**2)} and start anew"
        )


def _said_of_memory(limit: int) -> str:
    import mlx.core as mx

    active, kind = mx.get_active_memory(), allocator()
    said = (
        f"memory limit {format_bytes(limit)} (now {format_bytes(mx.get_memory_limit())}): while "
        "more is active, evaluation waits for what it has begun; no array is refused or freed"
    )
    if kind != "cpu":
        start = limit
        if kind == "metal":
            cap = samples.gpu_info()["max_recommended_working_set_size"]
            start = min(limit, int(RECLAIMED_AT * cap))
        said += f"; beyond {format_bytes(start)} active and cached, cached buffers are given back"
    if active > limit:
        said += (
            f". {format_bytes(active - limit)} more than that are active: evaluation gets slower "
            "until arrays are deleted"
        )
    return said


def _said_of_cache(limit: int) -> str:
    import mlx.core as mx

    cached, known = mx.get_cache_memory(), current().cache
    said = f"cache limit {format_bytes(limit)}"
    said += f" (now {format_bytes(known)}): " if known is not None else ": "
    excess = cached - limit
    if excess > 0:
        given = cached if excess >= CLEARED_AT * cached else excess
        when = (
            "at once, after all work under way"
            if allocator() == "cpu"
            else "at the next allocation"
        )
        least = "" if given == cached else "at least "
        said += (
            f"{least}{format_bytes(given)} of {format_bytes(cached)} of cached buffers are given "
            f"back {when}; "
        )
    if limit == 0:
        return said + "no freed buffer is kept, so each new one is asked of the system: slower"
    return said + "of buffers freed later, MLX keeps that much for new arrays"


def _said_of_wired(limit: int) -> str:
    if limit == 0:
        return "wired limit 0 B: macOS may compress or swap any of MLX's buffers"
    return (
        f"wired limit {format_bytes(limit)}: macOS (from 15 on) keeps up to that much of MLX's "
        "buffers resident, and has as much less for all other programs"
    )
