"""Whether memory grows step after step, and what is behind it.

What counts are low-water marks, so a sawtooth (buffers that are freed every few steps) does not; a
rise that becomes slower is a warm-up (first steps, caches that fill up) and does not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from statistics import median

from mlxbench_kernel.memory.changes import Grown, grew
from mlxbench_kernel.memory.holdings import Holdings
from mlxbench_kernel.units import format_bytes

STEPS = 20  # fewer decide nothing
SHARE = 0.01  # of what is active, in a thousand steps
BLOCKS = 10
_WARM_UP = 0.2  # of the series, which is not looked at
_RISING = 0.8  # of the blocks
_STEADY = 0.6  # slope of the second half over that of the first
_TOOTH = 0.3  # of the rise: what went up by that and came down again is a sawtooth
_TAILS = (1, 2, 4)  # growth may have begun in the last half, or the last quarter
_BEHIND = 0.1  # of the growth; less is no cause of it


@dataclass(frozen=True)
class Growth:
    """Memory that grows.

    Attributes
    ----------
    first, last
        Steps (or cells) between which it was seen to.
    bytes
        That it grew meanwhile.
    per_step
        Bytes in each step: the median of slopes (Theil and Sen).
    share
        Of what was active at first that it grew by.
    """

    first: int
    last: int
    bytes: int
    per_step: float
    share: float


@dataclass(frozen=True)
class Cause:
    """A name behind a growth.

    Attributes
    ----------
    path, kind
        Of the node that grew, as in `Holdings`.
    bytes, nodes, arrays
        By how much, between the two moments.
    said
        In words, with what to do.
    """

    path: str
    kind: str
    bytes: int
    nodes: int
    arrays: int
    said: str


def find_growth(
    steps: Sequence[int], active: Sequence[int], *, least: int = STEPS, share: float = SHARE
) -> Growth | None:
    """Decide whether memory grows step after step.

    Parameters
    ----------
    steps
        Numbers of steps or cells, ascending, one or more samples each. What came before the last
        restart, or before other work than this, should not be among them; some hundred of the
        last ones are enough.
    active
        Bytes of ``mx.get_active_memory`` then. At the same point of each step they decide sooner.
    least
        With fewer steps there is no answer yet.
    share
        Slower growth, as a part of what is active and in a thousand steps, is none.

    Returns
    -------
    Growth or None
        None where it does not grow, or that cannot be said yet.

    Raises
    ------
    ValueError
        The series differ in length.
    """
    samples = list(zip(steps, active, strict=True))
    for part in _TAILS if samples else ():
        start = steps[-1] - (steps[-1] - steps[0]) // part
        if steps[-1] - start + 1 < least:
            break
        found = _in(samples, start, share)
        if found is not None and _tooth(_low_water(samples, BLOCKS * part)) < _TOOTH * found.bytes:
            return found
    return None


def _in(samples: list[tuple[int, int]], start: int, share: float) -> Growth | None:
    """Growth from a step on."""
    start += int(_WARM_UP * (samples[-1][0] - start))
    marks = _low_water([sample for sample in samples if sample[0] >= start], BLOCKS)
    if len(marks) < BLOCKS // 2:
        return None
    lows = [low for _, low in marks]
    rise, slope = lows[-1] - lows[0], _slope(marks)
    half = len(marks) // 2
    if (
        rise <= 0
        or slope * 1000 < share * max(lows[0], 1)
        or sum(b > a for a, b in pairwise(lows)) < _RISING * (len(lows) - 1)
        or lows[-1] <= lows[-2]
        or _slope(marks[half:]) < _STEADY * _slope(marks[: half + 1])
    ):
        return None
    return Growth(marks[0][0], marks[-1][0], rise, slope, rise / max(lows[0], 1))


def causes(before: Holdings, after: Holdings, count: int = 5) -> list[Cause]:
    """What is behind a growth between two moments: variables, or graphs that nobody evaluates.

    Parameters
    ----------
    before, after
        From `attribute`, some steps apart, at the same point of a step.
    count
        So many at most.

    Returns
    -------
    list of Cause
        Largest first. Empty where no variable grew: it is held by something that was not found
        then, or below `HOLDERS`.
    """
    grown = [each for each in grew(before, after) if each.kind != "cache"]
    total = sum(max(each.bytes, 0) for each in grown)
    found = [each for each in grown if each.bytes > _BEHIND * total or each.nodes > 0]
    found.sort(key=lambda each: (each.bytes, each.nodes), reverse=True)
    return [
        Cause(each.path, each.kind, each.bytes, each.nodes, each.arrays, _said(each))
        for each in found[:count]
    ]


def _low_water(samples: list[tuple[int, int]], blocks: int) -> list[tuple[int, int]]:
    """The lowest sample of each of so many spans of equally many steps, where there is one."""
    first, last = samples[0][0], samples[-1][0]
    lowest: dict[int, tuple[int, int]] = {}
    for step, value in samples:
        block = min((step - first) * blocks // max(last - first, 1), blocks - 1)
        if block not in lowest or value < lowest[block][1]:
            lowest[block] = step, value
    return list(lowest.values())


def _slope(marks: list[tuple[int, int]]) -> float:
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(marks, 2) if b[0] > a[0]]
    return median(slopes) if slopes else 0.0


def _tooth(marks: list[tuple[int, int]]) -> int:
    """The largest rise that was followed by as large a fall."""
    lows = [low for _, low in marks]
    before = list(accumulate(lows, min))
    after = list(accumulate(reversed(lows), min))[::-1]
    return max(low - max(a, b) for low, a, b in zip(lows, before, after, strict=True))


def _said(grown: Grown) -> str:
    size = format_bytes(grown.bytes)
    if grown.kind == "unattributed":
        return f"{size} more that no variable holds: a trace, a thread or a compiled function does"
    if grown.kind == "kv cache":
        return f"{grown.path} is {size} larger, as a KV cache is with each token"
    if grown.nodes > 0:
        return (
            f"{grown.path} is not evaluated and keeps {grown.nodes:,} nodes of its graph more "
            f"alive, with {size} behind them: evaluate it in each step, mx.eval(…, {grown.path})"
        )
    if grown.arrays > 0:
        return (
            f"{grown.path} holds {grown.arrays:,} arrays more, {size}: keep numbers in it, "
            "loss.item(), or only the last ones"
        )
    return f"{grown.path} is {size} larger"
