"""Builds steps: the next one while the one before it runs, so that a device waits less for Python.

What is built is a graph, of which nothing is evaluated. Where another step is to come, or none,
the state is put back to what it was before, to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.frozen import Parts
from mlxbench_kernel.training.batches import Batch, Batches
from mlxbench_kernel.training.program import Kind, Outcome

Step = Callable[
    [Sequence[Batch], float | None, Kind, mx.array, Sequence[mx.array]],
    Outcome,
]  # as `Program` is called


def helps() -> bool:
    """Whether steps built ahead make a run faster here.

    On a CPU what builds takes the time from what computes, and MLX 0.32.4 waits in ``async_eval``
    for most of a step.
    """
    return bool(mx.default_device() == mx.gpu)


class Reached(NamedTuple):
    """The state after a step, and the key of ``mx.random``: uint32 [2]."""

    parts: Parts
    random: mx.array


@dataclass(frozen=True)
class Built:
    """A step that was built, and not begun.

    Attributes
    ----------
    kind
        Which variant.
    outcome
        Lazy.
    batches
        What it was given.
    seconds
        That it took to get these.
    """

    kind: Kind
    outcome: Outcome
    batches: list[Batch]
    seconds: float


class Builder:
    """Builds the steps of a run on one rank.

    Parameters
    ----------
    step
        Computes a step, lazily.
    batches, accumulate
        What it is given: so many batches for each.
    counters, roots
        As `Place` has them.
    numbers
        What this rank tells the others with the last step of a lease.

    Attributes
    ----------
    reached : Reached or None
        The state of now, where one that follows was built already and has taken its place.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        accumulate: int,
        counters: dict[str, Any],
        roots: list[Any],
        numbers: mx.array,
    ) -> None:
        self._step, self._batches, self._accumulate = step, batches, accumulate
        self._counters, self._roots = counters, roots
        self._numbers = numbers
        self._ahead: Built | None = None
        self._interrupt: BaseException | None = None
        self.reached: Reached | None = None

    def build(self, kind: Kind, before: Sequence[mx.array]) -> Built:
        """The next step; where it was built ahead, that one.

        Parameters
        ----------
        kind
            Which variant.
        before
            The values of the steps of the lease until now.
        """
        self._raise_interrupt()
        if self._ahead is not None and self._ahead.kind != kind:
            self.discard()
        built = self._ahead or self._built(kind, self._counters["position"], before)
        self._ahead = self.reached = None  # so that the step can write over what nobody keeps
        return built

    def build_ahead(self, kind: Kind, before: Sequence[mx.array]) -> None:
        """Build the step that follows the one which was begun; arguments as in `build`.

        What goes wrong in that is not told: it will again when it is that step's turn. So is an
        interrupt, as the step that was begun is to be complete.
        """
        counters = self._counters
        step, first = counters["step"], counters["position"]
        following = first + self._accumulate
        counters.update(step=step + 1, position=following)
        try:
            parts = frozen.freeze(self._roots, complete=False)
        finally:
            counters.update(step=step, position=first)  # it is not complete yet
        assert parts is not None
        self.reached = Reached(parts, frozen.random_key())
        try:
            self._ahead = self._built(kind, following, before)
        except BaseException as error:
            self.discard()
            self._interrupt = None if isinstance(error, Exception) else error

    def discard(self) -> None:
        """Have the state as it was before one was built ahead."""
        reached, self._ahead, self.reached = self.reached, None, None
        if reached is not None:
            here = dict(self._counters)
            frozen.put_back(reached.parts)
            with suppress(RuntimeError):  # MLX's: the step that was begun has failed
                frozen.seed(reached.random)
            self._counters.update(here)

    def end(self) -> None:
        """No step follows now."""
        self.discard()
        self._raise_interrupt()

    def _raise_interrupt(self) -> None:
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt

    def awaited(self) -> list[Any]:
        """What of the state the step changes that was begun."""
        if self.reached is None:
            return [self._roots, mx.random.state]
        return [*frozen.arrays(self.reached.parts), self.reached.random]

    def batches_of_now(self) -> list[Batch]:
        """What the next step is given."""
        return self._batches_from(self._counters["position"])

    def _batches_from(self, first: int) -> list[Batch]:
        shuffled = self._counters["shuffle"]
        return [self._batches.at(first + number, shuffled) for number in range(self._accumulate)]

    def _built(self, kind: Kind, first: int, before: Sequence[mx.array]) -> Built:
        started = time.perf_counter()
        batches = self._batches_from(first)
        seconds = time.perf_counter() - started
        outcome = self._step(batches, self._counters["clip"], kind, self._numbers, before)
        return Built(kind, outcome, batches, seconds)
