"""Each pool of each host as one stack: system, other programs, our ranks, what is free."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxbench_kernel.memory.record import COLUMNS, PRESSURES
from mlxbench_kernel.remote.lateness import STALE_SECONDS, line, state
from mlxbench_kernel.remote.memory_feed import Seen

TREND_SECONDS = 30.0  # over which swap is said to grow or to shrink
TREND_BYTES = 16 << 20
TOLD = ("wired", "compressed", "swap", "pressure")  # by most systems


@dataclass(frozen=True)
class Segment:
    """A part of a bar.

    Attributes
    ----------
    kind
        "system", "others", "active", "cache", "rest", "held" or "free". "held" is what a rank had
        until it died, as much of it as is free now, before anybody else takes it.
    bytes
        Its size.
    rank
        Whose it is; -1 for nobody's.
    state
        Of the rank, where this is as it was last known: "late" or "gone"; else "".
    """

    kind: str
    bytes: float
    rank: int = -1
    state: str = ""


@dataclass(frozen=True)
class Marker:
    """A limit or a peak, drawn where what it is of would end if it were that large.

    Attributes
    ----------
    name
        As "peak of rank 1", "GPU cap".
    bytes
        The limit.
    at
        Bytes from the beginning of the bar.
    """

    name: str
    bytes: float
    at: float


@dataclass(frozen=True)
class Bar:
    """A pool of a host at one moment.

    Attributes
    ----------
    host, pool
        Whose, and which: "unified", "host" or "gpu 0".
    total
        Of the pool, in bytes.
    segments
        They fill it.
    markers
        Limits and peaks, those that lie within the pool.
    pressure
        "normal", "warn" or "critical"; "" where the system does not tell.
    swap, swap_trend
        Bytes swapped out (NaN if not known), and -1, 0 or 1.
    unknown
        What the system does not tell: "compressed", "wired", …
    stale
        Seconds since it was heard of, where that is long ago; else 0.
    said
        A line for each rank that is gone or late: how, and since when.
    """

    host: str
    pool: str
    total: float
    segments: tuple[Segment, ...]
    markers: tuple[Marker, ...] = ()
    pressure: str = ""
    swap: float = math.nan
    swap_trend: int = 0
    unknown: tuple[str, ...] = ()
    stale: float = 0.0
    said: tuple[str, ...] = ()

    @property
    def free(self) -> float:
        """Bytes that nobody uses."""
        return sum(each.bytes for each in self.segments if each.kind in ("held", "free"))


def bars(
    ranks: Sequence[Seen], limits: Mapping[int, Mapping[str, float]], now: float | None = None
) -> list[Bar]:
    """The bars of all hosts, in the order of their first rank.

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
    return [bar for host, there in by_host.items() for bar in _of_host(host, there, limits, now)]


def _of_host(
    host: str, ranks: Sequence[Seen], limits: Mapping[int, Mapping[str, float]], now: float
) -> list[Bar]:
    # Of those that are gone only what they held is shown, or all if nobody else tells of the pool.
    there = [each for each in ranks if not each.why] or ranks
    gone = [each for each in ranks if each.why and each not in there]
    states = {each.rank: state(each, now) for each in ranks}
    said = tuple(told for each in ranks if (told := line(each, now)))
    newest = max(there, key=lambda each: each.last["time"])
    pool = newest.last
    alive = {each.rank: each.last for each in there}
    apart = not math.isnan(pool["gpu_total"])
    system = _known(pool["wired"]) + _known(pool["compressed"])
    marks = {rank: limits.get(rank, {}) for rank in alive}
    stack = _stack(
        pool["total"], pool["available"], system,
        {rank: _charged(each, apart) for rank, each in alive.items()},
        {each.rank: each.last["footprint"] for each in gone}, states,
    )  # fmt: skip
    found = [
        Bar(
            host,
            "host" if apart else "memory",
            pool["total"],
            stack,
            () if apart else _markers(pool["total"], stack, alive, marks),
            "" if math.isnan(pool["pressure"]) else PRESSURES[int(pool["pressure"])],
            pool["swap"],
            _trend(newest, now),
            tuple(name for name in TOLD if math.isnan(pool[name])),
            _stale(pool, now),
            said,
        )
    ]
    for rank, each in alive.items() if apart else ():
        # Each rank has a GPU of its own, as CUDA_VISIBLE_DEVICES gives it.
        total = each["gpu_total"]
        ours = {rank: (("active", each["active"]), ("cache", each["cache"]))}
        stack = _stack(total, each["gpu_available"], 0.0, ours, {}, states)
        markers = _markers(total, stack, {rank: each}, marks)
        found.append(
            Bar(host, f"GPU of rank {rank}", total, stack, markers, stale=_stale(each, now))
        )
    return found


def _stale(sample: Mapping[str, float], now: float) -> float:
    age = now - sample["time"]
    return age if age > STALE_SECONDS else 0.0


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _charged(sample: Mapping[str, float], apart: bool) -> tuple[tuple[str, float], ...]:
    """What the system charges a rank, in parts: memory that MLX has asked for and never touched
    takes no room."""
    footprint = sample["footprint"]
    if apart:
        return (("rest", footprint),)
    active = min(sample["active"], footprint)
    cache = min(sample["cache"], footprint - active)
    return ("active", active), ("cache", cache), ("rest", footprint - active - cache)


def _stack(
    total: float,
    available: float,
    system: float,
    ours: Mapping[int, Sequence[tuple[str, float]]],
    gone: Mapping[int, float],
    states: Mapping[int, str],
) -> tuple[Segment, ...]:
    """What fills a pool; `gone` is what ranks held that are no more."""
    own = [
        Segment(kind, size, rank, states[rank])
        for rank, parts in ours.items()
        for kind, size in parts
    ]
    used = sum(each.bytes for each in own)
    # macOS counts what Metal keeps resident for us as wired too: that is ours. And each number is
    # of a moment of its own: what is left over is never less than nothing.
    system = min(system, max(total - available - used, 0.0))
    others = max(total - available - system - used, 0.0)
    free = max(total - system - others - used, 0.0)
    held = []
    for rank, size in gone.items():
        held.append(Segment("held", min(size, free), rank, states[rank]))
        free -= held[-1].bytes
    ends = (*held, Segment("free", free))
    return (Segment("system", system), Segment("others", others), *own, *ends)


def _markers(
    total: float,
    stack: Sequence[Segment],
    alive: Mapping[int, Mapping[str, float]],
    marks: Mapping[int, Mapping[str, float]],
) -> tuple[Marker, ...]:
    """What is marked: of each rank, and once where it is the same for all."""
    begins: dict[tuple[int, str], float] = {}
    passed = 0.0
    for segment in stack:
        begins[segment.rank, segment.kind] = passed
        passed += segment.bytes
    wanted = {rank: {"peak": each["peak"], **marks[rank]} for rank, each in alive.items()}
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
