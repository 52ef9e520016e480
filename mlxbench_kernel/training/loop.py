"""Takes one step after another, measures it, and tells the other ranks what they must know.

With its loss every rank sends a few numbers: whether it was asked to stop, whether it has another
batch, how long its last step took. They travel with the gradients, so they cost nothing of their
own, and all ranks have the same numbers after the same step: what is decided by them is decided
alike, and no rank goes on to a collective that another one will not come to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel import native
from mlxbench_kernel.memory import host_pool
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.batches import Batch, Batches
from mlxbench_kernel.training.program import Outcome, Slots

# What ranks tell one another beside the loss, in this order.
STOP, NEXT, ELAPSED, SECONDS, DATA, COLLECTIVE, MEMORY, POOL = range(8)
Numbers = NDArray[np.float32]

Step = Callable[[Sequence[Batch], Slots, float | None, bool], Outcome]


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
    stop
        Whether a rank was asked to stop.
    lacking
        Ranks that have no further batch.
    slowest
        Seconds that the step before took on the slowest rank.
    """

    record: dict[str, float]
    shared: dict[str, float]
    samples: dict[str, NDArray[np.float32]]
    stop: bool
    lacking: list[int]
    slowest: float


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
    """

    kind: str
    text: str
    step: int

    def __str__(self) -> str:
        return self.text


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
    state
        The dicts and lists that a step changes.
    rate
        Gives the learning rate of now, if there is one.
    group
        The ranks.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        accumulate: int,
        counters: dict[str, Any],
        state: Any,
        rate: Callable[[], mx.array | None],
        group: mx.distributed.Group,
    ) -> None:
        self._step, self._batches, self._accumulate = step, batches, accumulate
        self._counters, self._state, self._rate = counters, state, rate
        self._group = group
        size, rank = group.size(), group.rank()
        self._place = (mx.arange(size) == rank).reshape(-1, 1)
        numbers = mx.zeros((size, POOL + 1))
        mx.eval(self._place, numbers)
        # Written while a step runs: a request to stop goes out with that step's gradients.
        self._numbers = numbers
        self._written: Numbers = np.array(numbers, copy=False)[rank]
        self._written[POOL] = self._pool = float(host_pool()[0])
        self._seen: tuple[int | None, float, mx.array | None] = (None, 0.0, None)
        self._amounts: dict[Any, tuple[int, int]] = {}
        self._began = time.perf_counter()
        self._logged = GROUP.spent(0)[0]

    def begin(self, stop: bool = False) -> None:
        """A run begins: time counts from now."""
        self._began = time.perf_counter()
        self._written[STOP] = stop
        self._logged = GROUP.spent(self._logged)[0]

    def stop(self) -> None:
        """Have all ranks stop after the step that is being taken; from any thread."""
        self._written[STOP] = 1

    def take(self, measured: bool) -> Taken:
        """Take a step; counters count it when it is complete."""
        counters = self._counters
        started = time.perf_counter()
        first = counters["position"]
        batches = self.batches_of_now()
        data = time.perf_counter() - started
        following = first + 2 * self._accumulate - 1
        self._written[NEXT] = self._batches.has(following)
        self._written[ELAPSED] = started - self._began
        with PROTECTION.held():
            slots = self._place, self._numbers
            outcome = self._step(batches, slots, counters["clip"], measured)
            mx.eval(self._state, outcome.arrays, mx.random.state)
        seconds = time.perf_counter() - started
        counters["step"] += 1
        counters["position"] = first + self._accumulate
        return self._noted(outcome, batches, seconds, data, measured)

    def batches_of_now(self) -> list[Batch]:
        """What the next step is given."""
        first, shuffled = self._counters["position"], self._counters["shuffle"]
        return [self._batches.at(first + number, shuffled) for number in range(self._accumulate)]

    def _noted(
        self,
        outcome: Outcome,
        batches: Sequence[Batch],
        seconds: float,
        data: float,
        measured: bool,
    ) -> Taken:
        rank, size = self._group.rank(), self._group.size()
        told = [[value * size for value in row] for row in _rows(outcome.shared)]
        if size == 1:
            told = [[*self._written.tolist(), *told[0]]]
        values = [row[POOL + 1 :] for row in told]
        self._logged, spent = GROUP.spent(self._logged)
        collective = 0.0 if math.isnan(spent) else spent
        names = ("loss", *outcome.metrics)
        common = {"step": float(self._counters["step"])}
        for name, column in zip(names, zip(*values, strict=True), strict=True):
            common[name] = sum(column) / size
        for name, array in outcome.measures.items():
            if array.ndim == 0:
                common[name] = _item(array)
        if (rate := self._learning_rate()) is not None:
            common["learning_rate"] = rate
        lone = common.pop("grad_norm_rank", None)
        samples, tokens = self._amount(batches)
        memory = float(mx.get_active_memory())
        record = {
            **common, "loss_rank": values[rank][0], "seconds": seconds,
            "data_seconds": data, "compute_seconds": seconds - data - collective,
            "samples_per_second": samples / seconds, "memory": memory,
            "elapsed": time.perf_counter() - self._began, "pool": self._pool,
        }  # fmt: skip
        if lone is not None:
            record["grad_norm_rank"] = lone
        if not math.isnan(spent):
            record["collective_seconds"] = collective
        if tokens:
            record["tokens_per_second"] = tokens / seconds
        self._written[SECONDS : MEMORY + 1] = seconds, data, collective, memory
        fullest = max(told, key=lambda row: row[MEMORY] / row[POOL])
        most = [max(column) for column in zip(*told, strict=True)]
        shared = {
            **common, "elapsed": most[ELAPSED], "seconds": most[SECONDS],
            "data_seconds": most[DATA], "collective_seconds": most[COLLECTIVE],
            "memory": fullest[MEMORY], "pool": fullest[POOL],
        }  # fmt: skip
        per_parameter = {
            name.removeprefix("parameters."): np.array(array)
            for name, array in outcome.measures.items()
            if name.startswith("parameters.")
        }
        lacking = [rank for rank, row in enumerate(told) if row[NEXT] < 0.5]
        stop = most[STOP] > 0.5
        return Taken(record, shared, per_parameter, stop, lacking, shared["seconds"])

    def _learning_rate(self) -> float | None:
        """That of now, read only where it is another array: on a GPU reading moves memory."""
        found = self._rate()
        if found is None:
            return None
        module = native.load()
        number = None if module is None else module.array_id(found)
        if number is None or number != self._seen[0]:
            self._seen = number, _item(found), found  # the array, so that its id is not used again
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


def _rows(array: mx.array) -> list[list[float]]:
    rows: Any = array.tolist()
    return rows  # type: ignore[no-any-return]


def _item(array: mx.array) -> float:
    value: Any = array.item()
    return float(value)


SAMPLED = ("grad_norm", "update_ratio", "nonfinite")  # not measured at each step
