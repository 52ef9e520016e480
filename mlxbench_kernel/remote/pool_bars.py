"""Each pool of each host as one stack: system, other programs, our ranks, what is free."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence

from mlxbench_kernel.memory.pools import CUDA, PoolKey
from mlxbench_kernel.memory.record import COLUMNS, PRESSURES
from mlxbench_kernel.remote.bar import Bar, Marker, Segment
from mlxbench_kernel.remote.lateness import STALE_SECONDS, line, state
from mlxbench_kernel.remote.memory_feed import Seen

Limits = Mapping[int, Mapping[str, float]]
TREND_SECONDS = 30.0  # over which swap is said to grow or to shrink
TREND_BYTES = 16 << 20
TOLD = ("wired", "compressed", "swap", "pressure")  # by most systems


def bars(ranks: Sequence[Seen], limits: Limits, now: float | None = None) -> list[Bar]:
    """The bars of all hosts, in the order of their first rank.

    Ranks that draw from the same pool share its bar: those of a host, within a container or not,
    and those on one GPU with memory of its own.

    Parameters
    ----------
    ranks
        What is known of them.
    limits
        By rank: bytes by name of what is marked beside its peak, as "GPU cap", "memory limit".
    now
        Unix time.
    """
    now = time.time() if now is None else now
    by_host: dict[str, list[Seen]] = {}
    for each in ranks:
        if each.ring.taken:
            by_host.setdefault(each.host, []).append(each)
    found = []
    for host, there in by_host.items():
        pools = _by_pool(there)
        for sharing in pools:
            name = "host" if any(map(_has_gpu, sharing)) else "memory"
            name += f" of {_names(sharing)}" if len(pools) > 1 else ""
            found.append(_of_host(host, name, sharing, limits, now))
        for sharing in _by_gpu(filter(_has_gpu, there)):
            found.append(_of_gpu(host, sharing, limits, now))
    return found


def _by_pool(ranks: Iterable[Seen]) -> list[list[Seen]]:
    """The ranks of a host by the pool that they draw from: in containers those are several."""
    groups: dict[PoolKey, list[Seen]] = {}
    unknown: list[Seen] = []
    for each in ranks:
        key = next((key for key in each.pools if not key[0].startswith(CUDA)), None)
        (unknown if key is None else groups.setdefault(key, [])).append(each)
    if not groups:
        return [unknown]
    next(iter(groups.values())).extend(unknown)
    return [sorted(group, key=lambda each: each.rank) for group in groups.values()]


def _by_gpu(ranks: Iterable[Seen]) -> list[list[Seen]]:
    """The ranks of a host by their GPU; where that is not known, each has its own."""
    groups: dict[PoolKey | int, list[Seen]] = {}
    for each in ranks:
        key = next((key for key in each.pools if key[0] == CUDA and key[1]), each.rank)
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _has_gpu(seen: Seen) -> bool:
    """Whether it has a GPU with memory of its own."""
    return not math.isnan(seen.last["gpu_total"])


def _names(ranks: Sequence[Seen]) -> str:
    return f"rank{'s'[: len(ranks) > 1]} {', '.join(str(each.rank) for each in ranks)}"


def _present(ranks: Sequence[Seen]) -> tuple[list[Seen], list[Seen]]:
    """Whose memory is shown, and who is gone: of these only what they held, unless nobody else
    tells of the pool."""
    there = [each for each in ranks if not each.why]
    return (there, [each for each in ranks if each.why]) if there else (list(ranks), [])


def _of_host(host: str, name: str, ranks: Sequence[Seen], limits: Limits, now: float) -> Bar:
    there, gone = _present(ranks)
    newest = max(there, key=lambda each: each.last["time"])
    pool = newest.last
    stack = _stack(
        pool["total"],
        pool["available"],
        _system(pool),
        {each.rank: _charged(each) for each in there},
        {each.rank: each.last["footprint"] for each in gone},
        {each.rank: state(each, now) for each in ranks},
    )
    marked = {each.rank: each.last for each in there if not _has_gpu(each)}
    return Bar(
        host,
        name,
        pool["total"],
        stack,
        _markers(pool["total"], stack, marked, limits),
        "" if math.isnan(pool["pressure"]) else PRESSURES[int(pool["pressure"])],
        pool["swap"],
        _trend(newest, now),
        tuple(name for name in TOLD if math.isnan(pool[name])),
        _stale(pool, now),
        _said(ranks, now),
    )


def _of_gpu(host: str, ranks: Sequence[Seen], limits: Limits, now: float) -> Bar:
    there, gone = _present(ranks)
    pool = max(there, key=lambda each: each.last["time"]).last
    alive = {each.rank: each.last for each in there}
    stack = _stack(
        pool["gpu_total"],
        pool["gpu_available"],
        None,
        {n: (("active", each["active"]), ("cache", each["cache"])) for n, each in alive.items()},
        {each.rank: each.last["active"] + each.last["cache"] for each in gone},
        {each.rank: state(each, now) for each in ranks},
    )
    return Bar(
        host,
        f"GPU of {_names(ranks)}",
        pool["gpu_total"],
        stack,
        _markers(pool["gpu_total"], stack, alive, limits),
        stale=_stale(pool, now),
        said=_said(ranks, now),
    )


def _said(ranks: Sequence[Seen], now: float) -> tuple[str, ...]:
    return tuple(told for each in ranks if (told := line(each, now)))


def _stale(sample: Mapping[str, float], now: float) -> float:
    age = now - sample["time"]
    return age if age > STALE_SECONDS else 0.0


def _system(pool: Mapping[str, float]) -> float | None:
    """What is known to be the system's; None where nothing is."""
    known = [pool[name] for name in ("wired", "compressed") if not math.isnan(pool[name])]
    return sum(known) if known else None


def _charged(seen: Seen) -> tuple[tuple[str, float], ...]:
    """What the system charges a rank, in parts: memory that MLX has asked for and never touched
    takes no room."""
    footprint = seen.last["footprint"]
    if _has_gpu(seen):
        return (("rest", footprint),)
    active = min(seen.last["active"], footprint)
    cache = min(seen.last["cache"], footprint - active)
    return ("active", active), ("cache", cache), ("rest", footprint - active - cache)


def _stack(
    total: float,
    available: float,
    system: float | None,
    ours: Mapping[int, Sequence[tuple[str, float]]],
    gone: Mapping[int, float],
    states: Mapping[int, str],
) -> tuple[Segment, ...]:
    """What fills a pool; `gone` is what ranks held that are no more. A system of which nothing is
    known is among the others, and has no part of its own: that would be shown as nothing."""
    own = [
        Segment(kind, size, rank, states[rank])
        for rank, parts in ours.items()
        for kind, size in parts
    ]
    used = sum(each.bytes for each in own)
    # macOS counts what Metal keeps resident for us as wired too: that is ours. And each number is
    # of a moment of its own: what is left over is never less than nothing.
    taken = max(total - available - used, 0.0)
    known = 0.0 if system is None else min(system, taken)
    others = Segment("others", taken - known)
    above = (others,) if system is None else (Segment("system", known), others)
    free = max(total - taken - used, 0.0)
    held = []
    for rank, size in gone.items():
        held.append(Segment("held", min(size, free), rank, states[rank]))
        free -= held[-1].bytes
    ends = (*held, Segment("free", free))
    return (*above, *own, *ends)


def _markers(
    total: float,
    stack: Sequence[Segment],
    alive: Mapping[int, Mapping[str, float]],
    limits: Limits,
) -> tuple[Marker, ...]:
    """What is marked: of each rank, and once where it is the same for all."""
    begins: dict[tuple[int, str], float] = {}
    passed = 0.0
    for segment in stack:
        begins[segment.rank, segment.kind] = passed
        passed += segment.bytes
    wanted = {rank: {"peak": each["peak"], **limits.get(rank, {})} for rank, each in alive.items()}
    found = []
    for name in dict.fromkeys(name for each in wanted.values() for name in each):
        values = {rank: each[name] for rank, each in wanted.items() if name in each}
        same = name != "peak" and len(values) == len(alive) and len(set(values.values())) == 1
        for rank, value in list(values.items())[: 1 if same else None]:
            of = "" if same or len(alive) == 1 else f" of rank {rank}"
            kind = "cache" if name == "cache limit" else "active"
            found.append(Marker(f"{name}{of}", value, begins[rank, kind] + value))
    return tuple(each for each in found if each.at <= total)


def _trend(seen: Seen, now: float) -> int:
    _, rows = seen.ring.since(seen.ring.taken - 600)
    swap = rows[rows[:, 0] > now - TREND_SECONDS, COLUMNS.index("swap")]
    if not len(swap) or math.isnan(swap[0]):
        return 0
    change = float(swap[-1] - swap[0])
    return (change > TREND_BYTES) - (change < -TREND_BYTES)
