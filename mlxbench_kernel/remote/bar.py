"""What a bar is: the parts of a pool of memory, and what is marked in it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A part of a bar.

    Attributes
    ----------
    kind
        "system", "others", "active", "cache", "rest", "held" or "free". "held" is what a rank had
        until it died, as much of it as is free now, before anybody else takes it. Without
        "system" nothing is known of what the system has, which is among the others then.
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
        Whose, and which: "memory", "host" beside a GPU with memory of its own, "GPU of rank 0".
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
