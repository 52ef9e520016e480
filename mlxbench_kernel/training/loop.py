"""Takes one step after another, measures it, and tells the other ranks what they must know.

Ranks run a *lease*: a few steps, as many as take some hundredths of a second, of which all know
the number beforehand. At its end each tells the others what it measured, whether it was asked to
stop, and for how many steps it has batches. So all have the same numbers after the same step:
what is decided by them is decided alike, and no rank goes on to a collective that another one
will not come to. Where gradients are averaged as float32, all that goes along with those of the
last step; else in a collective of its own.

On a GPU a step is built while the one before it runs, where that gains time, see `building`;
seconds of a step are then those that it took beyond that one, and of data those that it waited for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel import native
from mlxbench_kernel.memory import host_pool
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.batches import Batch, Batches
from mlxbench_kernel.training.building import Builder, Step
from mlxbench_kernel.training.outcome import MOST, Kind, Outcome
from mlxbench_kernel.training.settings import value_of
from mlxbench_kernel.training.taken import Agreed, Taken
from mlxbench_kernel.training.telling import (
    COLLECTIVE,
    COMPARING,
    DATA,
    ELAPSED,
    FULL,
    GAIN,
    LEFT,
    MEMORY,
    PLAIN,
    POOL,
    SECONDS,
    STOP,
    Telling,
    listed,
)

# What says nothing of other ranks, of all that is recorded; the rest all ranks know alike.
OWN = (
    "seconds", "data_seconds", "compute_seconds", "collective_seconds", "memory", "pool",
    "samples_per_second", "tokens_per_second", "elapsed", "loss_rank", "grad_norm_rank",
)  # fmt: skip
LEASE_SECONDS = 0.0225  # of a lease, beyond its first step
DATA_SHARE = 0.1  # share of a step's time in making its batches, up to which that is done meanwhile
# A device that works on for so long after it was given a step, as a share of the time of building
# one: then building ahead gains more than it takes.
WORTH = 0.5
LOOKS = 5  # steps at which that is measured


@dataclass(slots=True)
class _Pending:
    """A step that is complete, and not recorded yet; seconds, and bytes."""

    step: int
    outcome: Outcome
    rate: mx.array | None
    again: bool
    amount: tuple[int, int]  # samples and tokens
    seconds: float
    data: float
    collective: float  # NaN where that is not known
    memory: float
    elapsed: float

    def own(self) -> dict[str, float]:
        """What this rank knows of it without reading an array, beside its pool."""
        (samples, tokens), seconds = self.amount, self.seconds
        known = not math.isnan(self.collective)
        collective = self.collective if known else 0.0
        own = {
            "step": float(self.step), "seconds": seconds, "data_seconds": self.data,
            "compute_seconds": max(seconds - self.data - collective, 0.0),
            "memory": self.memory, "samples_per_second": samples / seconds,
            "elapsed": self.elapsed,
        }  # fmt: skip
        if known:
            own["collective_seconds"] = collective
        if tokens:
            own["tokens_per_second"] = tokens / seconds
        return own


class Loop:
    """The steps of one run on one rank.

    Parameters
    ----------
    step
        Computes a step, lazily.
    batches, accumulate
        What it is given: so many batches for each.
    counters
        ``step``, ``position`` (the number of the next batch), ``clip`` and ``shuffle``.
    roots
        The dicts and lists of the state.
    rate
        Gives the learning rate of now, if there is one.
    group
        The ranks.

    Attributes
    ----------
    builder : Builder
        What builds steps.
    comparing : float
        Seconds of a comparison of replicas, to be told at the end of the next lease.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        accumulate: int,
        counters: dict[str, Any],
        roots: list[Any],
        rate: Callable[[], mx.array | None],
        group: mx.distributed.Group,
    ) -> None:
        self._batches, self._accumulate = batches, accumulate
        self._counters, self._roots, self._rate = counters, roots, rate
        self._group = group
        self._pool = float(host_pool()[0])
        self._telling = Telling(group, self._pool)
        self.builder = Builder(step, batches, accumulate, counters, roots, self._telling)
        self.comparing = 0.0
        self._seen: tuple[int | None, float, mx.array | None] = (None, 0.0, None)
        self._amounts: dict[Any, tuple[int, int]] = {}
        self._pending: list[_Pending] = []
        self._took: dict[bool, list[float]] = {False: [], True: []}  # since it was told last
        self._last = 0.0, 0.0, 0.0, 0.0  # `SECONDS` to `MEMORY` of the last step
        self._ahead = False  # whether that is worth building ahead for, and batches take no time
        # Of some steps of this run: how long it works on, and how long building the step took.
        self._works_on: list[tuple[float, float]] = []
        self._began = time.perf_counter()
        self._logged = GROUP.spent(0)[0]

    def begin(self) -> None:
        """A run begins: time counts from now."""
        self.settle()
        self._began = time.perf_counter()
        self._ahead = False
        self._works_on.clear()
        self.builder.begin()
        self._telling.begin()
        self._logged = GROUP.spent(self._logged)[0]

    def unread(self) -> tuple[int, int]:
        """The first and the last complete step of a lease that a fault or an interrupt has ended.

        Of those that had not been taken before; (0, 0) where there is none.
        """
        steps = [each.step for each in self._pending if not each.again]
        return (steps[0], steps[-1]) if steps else (0, 0)

    def read(self, last: int, together: bool) -> list[Taken]:
        """What was measured of these steps; it is not pending any more.

        Parameters
        ----------
        last
            The last step that still counts.
        together
            Whether all ranks have the same ones and call this; else what is a mean over the ranks
            is left out. Durations and memory are of this rank in any case.
        """
        found = [each for each in self._pending if not each.again and each.step <= last]
        self.settle()
        taken = []
        for each in found:
            own = each.outcome.values[None]
            if together and self._group.size() > 1:
                values = listed(mx.distributed.all_gather(own, group=self._group))
            else:
                values = listed(own)
            taken.append(self._taken(each, values, {}, together))
        return taken

    def settle(self) -> None:
        """What the last lease gave is recorded: nothing is pending any more."""
        self._pending.clear()

    def stop(self) -> None:
        """Have all ranks stop at the end of this lease; from any thread."""
        self._telling.stop()

    def take(
        self,
        measured: bool,
        again: bool = False,
        last: bool = True,
        following: Kind | None = None,
    ) -> Agreed | None:
        """Take a step; counters count it when it is complete.

        Parameters
        ----------
        measured
            Whether every parameter is measured.
        again
            Whether it had been taken before.
        last
            Whether it ends a lease.
        following
            The one that will follow, to be built meanwhile; None where the state is looked at
            before, or it is not known whether there will be one.

        Returns
        -------
        Agreed or None
            None within a lease.
        """
        counters = self._counters
        pending = self._pending
        if pending and pending[-1].step != counters["step"]:
            pending.clear()  # of a lease that a fault has ended, and which was gone back from
        started = time.perf_counter()
        first = counters["position"]
        told: list[mx.array] = []
        # Else what batches evaluate on one rank would count there alone. A context manager would
        # take longer than all of this otherwise, and so it is written out.
        PROTECTION.holds += 1
        try:
            if last:
                self._write(first, started - self._began)
            built = self.builder.build(Kind(measured, last))
            outcome = built.outcome
            data = 0.0 if built.was_ahead else built.seconds
            if last:
                told = outcome.told or [self._telling.told(outcome)]
            rate = self._rate()
            random: Any = frozen.RANDOM
            given = 0.0
            if following is not None and (self._ahead or len(self._works_on) < LOOKS):
                mx.async_eval(self._roots, outcome.arrays, told, random)
                given = time.perf_counter()
            if following is not None and self._ahead:
                late = self.builder.build_ahead(following)
                data += late if late > DATA_SHARE * self._last[0] else 0.0
                random = self.builder.key
            mx.eval(self._roots, outcome.arrays, told, random)
            self.builder.check()
        finally:
            PROTECTION.holds -= 1
        ended = time.perf_counter()
        if given and not self._ahead:
            self._works_on.append((ended - given, built.building))
        seconds, elapsed = ended - started, ended - self._began
        counters["step"] = step = counters["step"] + 1
        counters["position"] = first + self._accumulate
        if last:
            self._took = {False: [], True: []}
        self._took[measured].append(seconds)
        self._logged, spent = GROUP.spent(self._logged)
        memory = float(mx.get_active_memory())
        self._last = seconds, data, 0.0 if math.isnan(spent) else spent, memory
        amount = self._amount(built.batches)
        pending.append(
            _Pending(step, outcome, rate, again, amount, seconds, data, spent, memory, elapsed)
        )
        return self._agreed(told) if last else None

    def _write(self, first: int, elapsed: float) -> None:
        """Write what this rank tells the others at the end of a lease.

        Parameters
        ----------
        first
            Number of the batch that its last step begins with.
        elapsed
            Seconds of the run.
        """
        left = self._batches.steps_left(first + self._accumulate, self._accumulate)
        means = [_mean(each) for each in self._took.values()]
        numbers = left, elapsed, *self._last, *means, self._gain(), self.comparing
        self._telling.write(numbers, [each.outcome for each in self._pending])
        self.comparing = 0.0

    def _gain(self) -> float:
        """What is compared with `WORTH`; 0 where it is not known yet."""
        if len(self._works_on) < LOOKS:
            return 0.0
        # Several of the first ones may be traced.
        fastest = min(building for _, building in self._works_on)
        return median(seconds for seconds, _ in self._works_on) / fastest

    def _agreed(self, told: Sequence[mx.array]) -> Agreed:
        """Read what all ranks told of a lease."""
        outcomes = [each.outcome for each in self._pending]
        numbers, values = self._telling.read(told, outcomes)
        fullest = max(numbers, key=lambda row: row[MEMORY] / row[POOL])
        most = [max(column) for column in zip(*numbers, strict=True)]
        common = {
            "elapsed": most[ELAPSED], "seconds": most[SECONDS], "data_seconds": most[DATA],
            "collective_seconds": most[COLLECTIVE], "memory": fullest[MEMORY],
            "pool": fullest[POOL],
        }  # fmt: skip
        taken = [
            self._taken(each, of_it, common)
            for each, of_it in zip(self._pending, values, strict=True)
        ]
        gain = min(row[GAIN] for row in numbers)
        self._ahead = most[DATA] < DATA_SHARE * most[SECONDS] and gain > WORTH
        left = [round(row[LEFT]) for row in numbers]  # what went along was divided and multiplied
        seconds = most[SECONDS] or 1.0
        return Agreed(
            taken,
            most[STOP] > 0.5,
            [rank for rank, count in enumerate(left) if not count],
            max(1, min(lease_of(seconds), MOST, *left)),
            seconds,
            most[PLAIN],
            most[FULL],
            most[COMPARING],
        )

    def _taken(
        self,
        pending: _Pending,
        values: list[list[float]],
        common: dict[str, float],
        together: bool = True,
    ) -> Taken:
        """With losses and metrics of all ranks, or not `together`, of this one."""
        outcome, known = pending.outcome, {"step": float(pending.step)}
        names = ("loss", *outcome.metrics)
        for name, column in zip(names, zip(*values, strict=True), strict=True):
            if together:
                known[name] = sum(column) / len(values)
        samples: dict[str, NDArray[np.float32]] = {}
        for name, array in outcome.measures.items():
            if array.ndim == 0:
                known[name] = value_of(array)
            else:
                samples[name.removeprefix("parameters.")] = np.array(array)
        if pending.rate is not None:
            known["learning_rate"] = self._learning_rate(pending.rate)
        mine = values[self._group.rank() if together else 0]
        own = {**known, **pending.own(), "pool": self._pool, "loss_rank": mine[0]}
        known.pop("grad_norm_rank", None)
        return Taken(own, {**common, **known}, samples, pending.again)

    def _learning_rate(self, rate: mx.array) -> float:
        """Its value, read only where it is another array: on a GPU reading moves memory."""
        module = native.load()
        number = None if module is None else module.array_id(rate)
        if number is None or number != self._seen[0]:
            self._seen = number, value_of(rate), rate  # the array, so that its id is not used again
        return self._seen[1]

    def _amount(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Samples and tokens: the first axis, and elements where they are whole numbers."""
        shapes = tuple([getattr(batch[0], "shape", ()) for batch in batches if batch])
        found = self._amounts.get(shapes)
        if found is None:
            firsts = [batch[0] for batch in batches if batch and hasattr(batch[0], "shape")]
            samples = sum(each.shape[0] for each in firsts if each.shape)
            tokens = sum(
                each.size for each in firsts if len(each.shape) > 1 and "int" in str(each.dtype)
            )
            found = self._amounts[shapes] = samples, tokens
        return found


def lease_of(seconds: float) -> int:
    """How many steps of so many seconds a lease has."""
    return 1 + int(LEASE_SECONDS / seconds)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


SAMPLED = ("grad_norm", "update_ratio", "nonfinite")  # not measured at each step
