"""The batches of a run: a sequence, a function of the number, or an iterator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbench_kernel.errors import UsageError

KEPT = 256  # batches of an iterator
MANY = 10**6

Batch = tuple[Any, ...]


class Batches:
    """Gives the batch of any number, as far as that can be given again.

    Parameters
    ----------
    source
        A sequence (list, array along its first axis, anything with a length and numbers), a
        function that takes the number of a batch, counted from 0, or an iterator. Each batch is
        what the loss function takes after the model: a tuple or list gives several arguments.

    Attributes
    ----------
    length : int or None
        How many there are; None where that is not known.

    Raises
    ------
    UsageError
        It is none of these, or empty.
    """

    def __init__(self, source: Any) -> None:
        self.length: int | None = None
        self._get: Callable[[int], Any]
        self._iterator: Iterator[Any] | None = None
        self._order: tuple[int, Sequence[int]] | None = None
        self._came: OrderedDict[int, Any] = OrderedDict()
        self._next = 0
        if isinstance(source, mx.array) or (
            hasattr(source, "__len__") and hasattr(source, "__getitem__")
        ):
            self.length = len(source)
            self._get = source.__getitem__
            if not self.length:
                raise UsageError("Stepper: there are no batches: the sequence is empty")
        elif hasattr(source, "__next__") or hasattr(source, "__iter__"):
            self._iterator = iter(source)
            self._get = self._of_iterator
        elif callable(source):
            self._get = source
        else:
            raise UsageError(
                f"Stepper: batches is a {type(source).__name__}; give a sequence of batches, a "
                "function of their number, or an iterator"
            )

    @property
    def again(self) -> bool:
        """Whether any batch can be given again, however old."""
        return self._iterator is None

    @property
    def oldest(self) -> int:
        """The first number that can be given (again)."""
        if self._iterator is None:
            return 0
        return next(iter(self._came), self._next)

    def has(self, number: int) -> bool:
        """Whether there is a batch of that number; an iterator is asked for it."""
        if self.length is not None:
            return number < self.length
        if self._iterator is not None:
            self._draw(number)
            return number < self._next
        return True

    def steps_left(self, number: int, accumulate: int) -> int:
        """How many steps can be taken from a batch on, as far as that is known; at most `MANY`."""
        if self.length is not None:
            return max(self.length - number, 0) // accumulate
        if self._iterator is not None:
            return int(self.has(number + accumulate - 1))
        return MANY

    def at(self, number: int, shuffled: int | None = None) -> Batch:
        """A batch.

        Parameters
        ----------
        number
            Which one, counted from 0.
        shuffled
            Seed of the order in which a sequence is taken; None for its own.

        Raises
        ------
        UsageError
            An iterator has given it and it is not kept any more.
        IndexError
            There is none.
        """
        if self.length is not None:
            if number >= self.length:
                raise IndexError(number)
            if shuffled is not None:
                number = int(self._shuffled(shuffled)[number])
        batch = self._get(number)
        return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)

    def _shuffled(self, seed: int) -> Sequence[int]:
        if self._order is None or self._order[0] != seed:
            order: Any = np.random.default_rng(seed).permutation(self.length or 0)
            self._order = seed, order
        return self._order[1]

    def _of_iterator(self, number: int) -> Any:
        self._draw(number)
        if number in self._came:
            return self._came[number]
        if number < self._next:
            raise UsageError(
                f"batch {number} came from an iterator and is not kept any more (kept: "
                f"{self.oldest} to {self._next - 1}); give a sequence or a function of the number "
                "to go back as far as you like"
            )
        raise IndexError(number)

    def _draw(self, number: int) -> None:
        assert self._iterator is not None
        while self._next <= number:
            try:
                self._came[self._next] = next(self._iterator)
            except StopIteration:
                return
            self._next += 1
            if len(self._came) > KEPT:
                self._came.popitem(last=False)


def out_of_batches(step: int, ranks: Sequence[int], size: int, again: bool) -> str:
    """That there are no more after a step, and what can be done.

    Parameters
    ----------
    step
        After which one.
    ranks, size
        Those that have none, of so many.
    again
        Whether there are the same ones again.
    """
    all_of_them = len(ranks) == size
    who = (
        ""
        if all_of_them
        else f" on rank{'s' if len(ranks) > 1 else ''} " + ", ".join(map(str, ranks))
    )
    uneven = "" if all_of_them else " (the others have more)"
    way = (
        "stepper.restart_batches(), or %mlx_step restart-batches, begins with the first one again"
        if again
        else "give a sequence, or a function of the number, to begin with the first one again"
    )
    return f"step {step}: out of batches{who}{uneven}; {way}"
