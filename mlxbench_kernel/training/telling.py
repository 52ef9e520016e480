"""What ranks tell one another at the end of a lease: a row of numbers each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.training.outcome import MOST, Outcome

# Of each rank, in this order; then losses and metrics of all steps but the last one, room for
# more of them, and the last one's.
STOP, LEFT, ELAPSED, SECONDS, DATA, COLLECTIVE, MEMORY, PLAIN, FULL, GAIN, COMPARING, POOL = range(
    12
)
Rows = list[list[float]]  # by rank


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
        [ranks, n]. It is written while a step runs, and read in the last one of a lease, so that a
        request to stop goes out with that one. On a GPU that moves memory, and so does reading what
        ranks have told.
    """

    numbers: mx.array
    _own: NDArray[np.float32]  # of the same memory

    def __init__(self, group: mx.distributed.Group, pool: float) -> None:
        self._group, self._pool = group, pool
        self._stops = False
        self._make_room(MOST)

    def _make_room(self, values: int) -> None:
        """For so many losses and metrics of the steps before the last one."""
        self._place = size, rank = self._group.size(), self._group.rank()
        self._width = POOL + 1 + values
        numbers = mx.zeros((size, self._width))
        mx.eval(numbers)
        written: NDArray[np.float32] = np.array(numbers, copy=False)
        self.numbers, self._own = numbers, written[rank]
        self._own[POOL] = self._pool

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
            values += _listed(each.values)
        lacks = POOL + 1 + len(values) > self._width
        # Of the group of now: ranks may be dropped.
        if lacks or self._place != (self._group.size(), self._group.rank()):
            self._make_room(MOST * max(len(values), 1))
        own = self._own
        own[STOP:POOL] = self._stops, *numbers
        own[POOL + 1 : POOL + 1 + len(values)] = values

    def told(self, outcome: Outcome) -> mx.array:
        """What all ranks have to tell, where it did not go along with gradients: lazy, float32
        [ranks, n + 1 + metrics]."""
        size, rank = self._place
        own = mx.concatenate([self.numbers[rank : rank + 1], outcome.values[None]], axis=1)
        return own if size == 1 else mx.distributed.all_gather(own, group=self._group)

    def read(self, told: mx.array, steps: Sequence[Outcome]) -> tuple[Rows, list[Rows]]:
        """The numbers that ranks told, and the values of each step of the lease."""
        rows = _listed(told)
        if steps[-1].told:  # with gradients, and as these divided by the number of ranks
            rows = [[number * len(rows) for number in row] for row in rows]
        values, place = [], POOL + 1
        for each in steps:
            first = place if each is not steps[-1] else self._width
            place = first + 1 + len(each.metrics)
            values.append([row[first:place] for row in rows])
        return [row[: POOL + 1] for row in rows], values


def _listed(array: mx.array) -> list[Any]:
    numbers: Any = array.tolist()
    return numbers  # type: ignore[no-any-return]
