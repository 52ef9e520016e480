"""Builds steps: the next one while the one before it runs, so that a device waits less for Python.

What is built is a graph, of which nothing is evaluated, and it takes the place of the state when it
is its turn. Where another step is to come, or none, it is forgotten, and nobody can tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxbench_kernel.interrupts import held
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.frozen import Parts
from mlxbench_kernel.training.batches import Batch, Batches
from mlxbench_kernel.training.outcome import Kind, Outcome
from mlxbench_kernel.training.telling import Telling

Step = Callable[[Sequence[Batch], float | None, Kind, mx.array], Outcome]  # as `Program` is called


def helps() -> bool:
    """Whether steps built ahead make a run faster here.

    On a CPU what builds takes the time from what computes, and MLX 0.32.4 waits in ``async_eval``
    for most of a step.
    """
    return bool(mx.default_device() == mx.gpu)


@dataclass
class Built:
    """A step that was built, and not begun.

    Attributes
    ----------
    kind
        Which variant.
    numbers
        What was to be told with it.
    outcome
        Lazy.
    batches
        What it was given.
    seconds
        That it took to get these.
    building
        That the rest took.
    state
        What it makes of the state, lazy; empty where that has taken its place already.
    was_ahead
        Whether that was done while the step before ran.
    """

    kind: Kind
    numbers: mx.array
    outcome: Outcome
    batches: list[Batch]
    seconds: float
    building: float
    state: Parts = field(default_factory=list)
    was_ahead: bool = False


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
    telling
        What this rank tells the others with the last step of a lease.

    Attributes
    ----------
    key : mlx.core.array or None
        The key of ``mx.random`` of now, uint32 [2], where building ahead has drawn from it.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        accumulate: int,
        counters: dict[str, Any],
        roots: list[Any],
        telling: Telling,
    ) -> None:
        self._step, self._batches, self._accumulate = step, batches, accumulate
        self._counters = counters
        self._trees = [each for each in roots if each is not counters]  # what a step changes
        self._ahead: Built | None = None
        self._failed: Exception | None = None
        self._interrupt: BaseException | None = None
        self.key: mx.array | None = None
        self._telling = telling

    def build(self, kind: Kind) -> Built:
        """The next step, which changes the state lazily; where it was built ahead, that one."""
        self.raise_interrupt()
        ahead = self._ahead
        if ahead is None or ahead.kind != kind or ahead.numbers is not self._telling.numbers:
            self.discard()
            return self._built(kind, self._counters["position"])
        with held():
            frozen.put_back(ahead.state)
            self._ahead = self.key = None
            ahead.state = []  # so that steps can write over what nobody keeps
        return ahead

    def build_ahead(self, kind: Kind) -> float:
        """Build the step that follows the one which was begun, and leave the state to that one.

        An interrupt meanwhile is raised when it is the other one's turn: the one which was begun
        is to be complete. So is what goes wrong, as it will again.

        Returns
        -------
        float
            Seconds in which its batches were made.
        """
        state = frozen.freeze(self._trees, complete=False) or []
        self.key = frozen.handle(frozen.random_key())
        try:
            built = self._built(kind, self._counters["position"] + self._accumulate)
            built.state, built.was_ahead = frozen.freeze(self._trees, complete=False) or [], True
            self._ahead = built
        except Exception as error:
            self._failed = error
        except BaseException as interrupt:
            self._interrupt = interrupt
        finally:
            with held():
                frozen.put_back(state)
        return 0.0 if self._ahead is None else self._ahead.seconds

    def check(self) -> None:
        """Raise what building ahead has met, where that was the failure of the step begun."""
        failed, self._failed = self._failed, None
        if failed is not None and not GROUP.intact:
            raise failed

    def discard(self) -> None:
        """Forget what was built ahead."""
        key, self._ahead, self.key = self.key, None, None
        if key is not None:
            with suppress(RuntimeError):  # MLX's: the step that was begun has failed
                frozen.seed(key)

    def begin(self) -> None:
        """A run begins: what was held back of another one is no matter of it."""
        self.discard()
        self._failed = self._interrupt = None

    def raise_interrupt(self) -> None:
        """Raise one that came while a step was built ahead."""
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt

    def batches_of_now(self) -> list[Batch]:
        """What the next step is given."""
        return self._batches_from(self._counters["position"])

    def _batches_from(self, first: int) -> list[Batch]:
        shuffled = self._counters["shuffle"]
        return [self._batches.at(first + number, shuffled) for number in range(self._accumulate)]

    def _built(self, kind: Kind, first: int) -> Built:
        started = time.perf_counter()
        batches = self._batches_from(first)
        begun = time.perf_counter()
        numbers = self._telling.numbers
        outcome = self._step(batches, self._counters["clip"], kind, numbers)
        building = time.perf_counter() - begun
        return Built(kind, numbers, outcome, batches, begun - started, building)
