"""Two sides measured by turns, and what their ratio is.

Whatever disturbs the machine for a while disturbs both sides alike: the runs of the two
sides alternate, each pair gives one ratio, and the median of these ratios is reported with a
bootstrap interval. Absolute figures vary from machine to machine; ratios less so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Comparison:
    """Ours against a reference.

    Attributes
    ----------
    case
        What was measured.
    reference
        Name of the reference.
    ours, theirs
        Seconds of each run, in pairs that were measured next to each other.
    target
        The ratio that ours must not exceed.
    size
        Bytes moved in each run; 0 where speed in GB/s means nothing.
    enough
        GB/s at which the target is met whatever the ratio; None where only the ratio counts.
    """

    case: str
    reference: str
    ours: list[float]
    theirs: list[float]
    target: float
    size: int = 0
    enough: float | None = None

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Ours divided by the reference, one ratio for each pair."""
        return np.divide(self.ours, self.theirs, dtype=np.float64)

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return float(np.median(self.ratios))

    @property
    def interval(self) -> tuple[float, float]:
        """Bootstrap interval of the median ratio (percentiles, 95 %)."""
        generator = np.random.default_rng(0)
        drawn = generator.choice(self.ratios, size=(RESAMPLES, len(self.ratios)))
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(np.median(drawn, axis=1), [tail, 100 - tail])
        return float(low), float(high)

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        if self.enough is not None and self._speed(self.ours) >= self.enough:
            return True
        return self.ratio <= self.target

    def _speed(self, seconds: list[float]) -> float:
        """Median speed in GB/s (10^9 bytes)."""
        return self.size / float(np.median(seconds)) / 1e9

    def __str__(self) -> str:
        low, high = self.interval
        ours, theirs = (_seconds(float(np.median(side))) for side in (self.ours, self.theirs))
        if self.size:
            ours += f", {self._speed(self.ours):.2f} GB/s,"
            theirs += f", {self._speed(self.theirs):.2f} GB/s"
        target = f"≤ {self.target:g} ×"
        if self.enough is not None:
            target = f"≥ {self.enough:g} GB/s or {target}"
        return (
            f"{self.case}: {self.ratio:.3f} × {self.reference} ({CONFIDENCE:.0%} of medians "
            f"{low:.3f} to {high:.3f}; {ours} against {theirs}; {len(self.ours)} pairs), "
            f"target {target}: {'met' if self.met else 'MISSED'}"
        )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def by_turns(*sides: Callable[[], float], pairs: int, warm_up: int = 1) -> tuple[list[float], ...]:
    """Run two or more sides by turns.

    Parameters
    ----------
    *sides
        Each does one run and returns its seconds; ours first, then references.
    pairs
        Number of rounds that count.
    warm_up
        Number of rounds before them that do not.

    Returns
    -------
    tuple of list
        For each side the seconds of its runs that count.
    """
    seconds: tuple[list[float], ...] = tuple([] for _ in sides)
    for turn in range(warm_up + pairs):
        # Another side goes first each time, so that none always finds another's warm caches.
        for place in range(len(sides)):
            side = (turn + place) % len(sides)
            taken = sides[side]()
            if turn >= warm_up:
                seconds[side].append(taken)
    return seconds


@dataclass
class Report:
    """Prints comparisons as they come, and remembers whether all targets were met."""

    check: bool
    missed: list[str] = field(default_factory=list)

    def add(self, comparison: Comparison) -> None:
        """Print one line."""
        print(comparison, flush=True)
        if not comparison.met:
            self.missed.append(comparison.case)

    def leave(self) -> None:
        """Exit: status 1 with ``--check`` and a missed target, else 0."""
        sys.exit(1 if self.check and self.missed else 0)


def arguments(description: str | None, pairs: int) -> argparse.ArgumentParser:
    """The options that every benchmark has.

    Parameters
    ----------
    description
        The docstring of the benchmark.
    pairs
        Pairs of runs by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=pairs, help=f"pairs of runs ({pairs})")
    parser.add_argument(
        "--check", action="store_true", help="exit with status 1 when a target is missed"
    )
    return parser
