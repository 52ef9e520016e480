"""What ranks tell one another at the end of a lease: a row of numbers each."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.training.outcome import MOST, Outcome

# Of each rank, in this order; then losses and metrics of the steps of a lease but the last, room
# for `MOST` such steps, and those of the last.
STOP, LEFT, ELAPSED, SECONDS, DATA, COLLECTIVE, MEMORY, PLAIN, FULL, GAIN, COMPARING, POOL = range(
    12
)
Numbers = list[list[float]]  # by rank


class Telling:
    """The row of this rank, and what becomes of it.

    Parameters
    ----------
    group
        The ranks.
    pool
        Bytes of memory that this one has.

    Attributes
    ----------
    numbers : mlx.core.array
        The row of this rank, but for the last step, and 0 in those of the others: float32
        [ranks, n], where n depends on nothing but the steps of this lease before the last. It is
        read in the last one, so that a request to stop meanwhile still goes out with it. On a GPU
        writing it moves memory, and so does reading what ranks have told.
    """

    numbers: mx.array
    _own: memoryview  # of the same memory

    def __init__(self, group: mx.distributed.Group, pool: float) -> None:
        self._group, self._pool = group, pool
        self._stops = False
        self._make_room((group.size(), group.rank(), 0))

    def _make_room(self, place: tuple[int, int, int]) -> None:
        """For so many ranks, this one among them, and values of each step before the last."""
        self._place = size, rank, values = place
        numbers = mx.zeros((size, _width(values)))
        mx.eval(numbers)
        written: NDArray[np.float32] = np.array(numbers, copy=False)
        self.numbers, self._own = numbers, memoryview(written[rank])

    def begin(self) -> None:
        """Nobody was asked to stop yet."""
        self._stops = False
        self._own[STOP] = 0

    def stop(self) -> None:
        """This rank is asked to stop; from any thread."""
        self._stops = True
        self._own[STOP] = 1

    def write(self, numbers: Sequence[float], before: Sequence[Outcome]) -> None:
        """Write the row, before the last step of a lease begins.

        Parameters
        ----------
        numbers
            Those from `LEFT` to `COMPARING`.
        before
            Of the steps of the lease until now, complete.
        """
        values: list[float] = []
        for each in before:
            values += listed(each.values)
        # In the group of now: ranks may be dropped.
        most = max((each.values.size for each in before), default=0)
        place = self._group.size(), self._group.rank(), most
        if self._place != place:
            self._make_room(place)
        row = self._stops, *numbers, self._pool, *values
        struct.pack_into(f"{len(row)}f", self._own, 0, *row)
        if self._stops:  # since the row was made
            self._own[STOP] = 1

    def told(self, outcome: Outcome) -> mx.array:
        """What all ranks have to tell, where it did not go along with gradients: lazy, float32
        [ranks, n + 1 + metrics]."""
        size, rank, _ = self._place
        own = mx.concatenate([self.numbers[rank : rank + 1], outcome.values[None]], axis=1)
        return own if size == 1 else mx.distributed.all_gather(own, group=self._group)

    def read(
        self, told: Sequence[mx.array], steps: Sequence[Outcome]
    ) -> tuple[Numbers, list[Numbers]]:
        """The numbers that ranks told, and the values of each step of the lease."""
        counts = [1 + len(each.metrics) for each in steps]
        rows = listed(told[0])
        lasts, times = [row[-counts[-1] :] for row in rows], 1
        if len(told) > 1:  # with gradients, and as these divided by the number of ranks
            lasts, times = listed(told[1]), len(rows)
        used = POOL + 1 + sum(counts[:-1])  # there is room for more steps
        rows = [
            [number * times for number in (*row[:used], *last)]
            for row, last in zip(rows, lasts, strict=True)
        ]
        values, place = [], POOL + 1
        for count in counts:
            values.append([row[place : place + count] for row in rows])
            place += count
        return [row[: POOL + 1] for row in rows], values


def padded(numbers: mx.array, values: int) -> mx.array:
    """With room for steps of so many values: a step is to be the same wherever in a lease it is."""
    lacks = _width(values) - numbers.shape[1]
    return mx.pad(numbers, [(0, 0), (0, lacks)]) if lacks > 0 else numbers


def _width(values: int) -> int:
    return POOL + 1 + MOST * values


def listed(array: mx.array) -> list[Any]:
    """The numbers of an array."""
    numbers: Any = array.tolist()
    return numbers  # type: ignore[no-any-return]
