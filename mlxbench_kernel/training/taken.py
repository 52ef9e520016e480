"""What is known of steps that were taken, and why a run stopped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Taken:
    """A step that was taken.

    Attributes
    ----------
    record
        What this rank has measured.
    shared
        What all ranks know alike, for conditions; durations and memory are the largest of any
        rank, of the step before.
    samples
        For each parameter: float32 [parameters] by measure; empty unless it was a measured step.
    again
        Whether it had been taken before.
    """

    record: dict[str, float]
    shared: dict[str, float]
    samples: dict[str, NDArray[np.float32]]
    again: bool


@dataclass
class Agreed:
    """What all ranks know at the end of a lease.

    Attributes
    ----------
    taken
        The steps of the lease.
    stop
        Whether a rank was asked to stop.
    lacking
        Ranks that have no further batch.
    lease
        How many steps the next one may have.
    seconds
        Of a step, on the slowest rank.
    plain, full
        Mean seconds of the plain and of the measured steps since the lease before, on the slowest
        rank; 0 where there was none.
    comparing
        Seconds of the last comparison of replicas, on the slowest rank; 0 where there was none.
    """

    taken: list[Taken]
    stop: bool
    lacking: list[int]
    lease: int
    seconds: float
    plain: float
    full: float
    comparing: float


@dataclass(frozen=True)
class Stop:
    """Why a run stopped.

    Attributes
    ----------
    kind
        "done", "paused", "condition", "breakpoint" or "batches".
    text
        The same in words.
    step
        After which step.
    name
        Of the breakpoint; "" for another kind.
    """

    kind: str
    text: str
    step: int
    name: str = ""

    def __str__(self) -> str:
        return self.text
