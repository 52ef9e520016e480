"""Ranks that are gone, or do not answer: what is said of them, and since when."""

from __future__ import annotations

import time

from mlxbench_kernel.remote.memory_feed import DOWN, Seen
from mlxbench_kernel.units import duration

STALE_SECONDS = 2.0  # after which a number is shown as old


def state(seen: Seen, now: float) -> str:
    """``"gone"``, ``"late"`` where what is known is old by now, or "".

    Parameters
    ----------
    seen
        The rank; it has told something before.
    now
        Unix time.
    """
    if seen.since is not None and seen.why:
        return "gone"
    late = seen.since is not None and now - seen.last["time"] > STALE_SECONDS
    return "late" if late else ""


def line(seen: Seen, now: float) -> str:
    """What its bar says of a rank, as ``rank 1 died 12 s ago (killed by SIGKILL)``; "" while it
    answers. See `state`."""
    kind = state(seen, now)
    if not kind or seen.since is None:
        return ""
    if kind == "late":
        age = duration(round(now - seen.last["time"]))
        return f"rank {seen.rank} has not answered for {age}: as it was then"
    ago = duration(max(round(now - seen.since), 0))
    if seen.how:
        return f"rank {seen.rank} died {ago} ago ({seen.how})"
    down = f": {DOWN}" if seen.why == DOWN else ""
    return f"rank {seen.rank} has been gone for {ago}{down}"


def how_late(seen: Seen, short: bool = False) -> str:
    """That a rank is gone or does not answer, and since when; "" while it does.

    Parameters
    ----------
    seen
        The rank.
    short
        Whether only how it ended is said, where that is known, and not what can be done.
    """
    if seen.since is None:
        return ""
    clock = time.strftime("%H:%M:%S", time.localtime(seen.since))
    why = (short and seen.how) or seen.why
    return f"gone since {clock}: {why}" if why else f"no answer since {clock}"
