"""What one training step computes: loss, gradients, their average over ranks, the update.

A step has two variants. The plain one computes what training needs; the *measured* one also
reduces every gradient, update and weight to a few numbers, which costs a pass over each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.utils import average_gradients, value_and_grad
from mlx.utils import tree_map

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.frozen import containers
from mlxbench_kernel.training.batches import Batch
from mlxbench_kernel.training.measures import flat, of_gradients, of_update
from mlxbench_kernel.training.settings import over

Loss = Callable[..., Any]
Result = tuple[mx.array, dict[str, mx.array], list[mx.array]]  # as in `Outcome`
MOST = 32  # steps of a lease


class Kind(NamedTuple):
    """Which variant of a step: whether it measures every parameter, and whether it ends a lease."""

    measured: bool
    last: bool


@dataclass
class Outcome:
    """What a step gives, all of it lazy.

    Attributes
    ----------
    values : float32 [1 + metrics]
        Loss and metrics of this rank.
    measures
        By measure: float32 [parameters] for each parameter, or of no dimension.
    metrics
        Names of the user's own, in the order of `values`.
    told : list of float32 [ranks, numbers + MOST * (1 + metrics)]
        One, where at the end of a lease the ranks' numbers, `values`, and those of the steps before
        went along with their gradients.
    """

    values: mx.array
    measures: dict[str, mx.array] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    told: list[mx.array] = field(default_factory=list)

    @property
    def arrays(self) -> list[mx.array]:
        """All that is to be evaluated."""
        return [self.values, *self.measures.values(), *self.told]


def read_result(result: Any) -> tuple[mx.array, dict[str, mx.array]]:
    """Loss and metrics of what a loss function or a step returned.

    Raises
    ------
    UsageError
        There is no loss in it.
    """
    metrics: dict[str, Any] = {}
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        result, metrics = result
    elif isinstance(result, dict):
        metrics = dict(result)
        result = metrics.pop("loss", None)
    if isinstance(result, (int, float)):
        result = mx.array(float(result))
    if not isinstance(result, mx.array) or result.size != 1:
        what = (
            f"an array of shape {list(result.shape)}"
            if isinstance(result, mx.array)
            else "nothing"
            if result is None
            else f"a {type(result).__name__}"
        )
        raise UsageError(
            f"Stepper: the step returned {what}: return the loss as one number, or "
            '(loss, metrics), or a dict with "loss" and your metrics'
        )
    found = {}
    for name, value in sorted(metrics.items()):
        value = mx.array(float(value)) if isinstance(value, (int, float)) else value
        if not isinstance(value, mx.array) or value.size != 1:
            raise UsageError(f"Stepper: metric {name!r} is no single number")
        found[str(name)] = _number(value)
    return _number(result), found


def _number(array: mx.array) -> mx.array:
    array = array if array.ndim == 0 else array.reshape(())
    return array if array.dtype == mx.float32 else array.astype(mx.float32)


def _row(loss: mx.array, metrics: Mapping[str, mx.array]) -> mx.array:
    return mx.stack([loss, *metrics.values()]) if metrics else loss.reshape(1)


class Program:
    """The step of a model, an optimizer and a loss function.

    Parameters
    ----------
    model, optimizer
        Updated in place.
    loss_fn
        ``loss_fn(model, *batch)``: the loss, or ``(loss, metrics)``.
    compiled
        Whether steps run through ``mx.compile``.
    group
        Over which gradients are averaged, as ``mlx.nn.average_gradients`` does; of three or more
        ranks in another order of the sums, as what they tell each other goes along.

    Attributes
    ----------
    names : list of str
        The paths of the parameters that are trained now.
    site : mlx.core.distributed.Group
        The group, as the line calls it that takes steps: to look for that at each costs some time.
    """

    def __init__(
        self,
        model: Module,
        optimizer: optim.Optimizer,
        loss_fn: Loss,
        compiled: bool,
        group: mx.distributed.Group,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._group = self.site = group
        self._compiled = compiled
        self._steps: dict[Hashable, Callable[..., Result]] = {}
        self._metrics: tuple[str, ...] = ()
        self._key: Hashable = None
        self._rows: dict[tuple[int, ...], tuple[mx.array, mx.array]] = {}

        def both(*batch: Any) -> tuple[mx.array, dict[str, mx.array]]:
            return read_result(loss_fn(model, *batch))

        self._value_and_grad = value_and_grad(model, both)
        self.refresh()

    def refresh(self, trained: bool = True) -> None:
        """Take note that settings, and with `trained` what is trained, may have changed."""
        if trained:
            arrays = flat(self.model.trainable_parameters())
            self.names = [name for name, _ in arrays]
            self._alike = bool(arrays) and all(each.dtype == mx.float32 for _, each in arrays)
        # What a trace depends on beside shapes.
        numbers = tuple(sorted(_numbers(self.optimizer).items()))
        self._key = numbers, tuple(self.names), self.model.training

    def __call__(
        self,
        batches: Sequence[Batch],
        clip: float | None,
        kind: Kind,
        numbers: mx.array,
        before: Sequence[mx.array],
    ) -> Outcome:
        """One step, lazily; without `compiled`, batches but the last are evaluated.

        Parameters
        ----------
        batches
            Whose gradients are averaged.
        clip
            Largest norm of the averaged gradients; None for any.
        kind
            Which variant.
        numbers
            What this rank has to tell the others at the end of a lease: float32 [n].
        before
            The values of the steps of the lease until now.
        """
        if not self._tells_along:
            kind, before = Kind(kind.measured, False), ()
        others: mx.array | None = None
        if kind.last and before:
            lacks = (MOST - 1) * before[0].size - sum(each.size for each in before)
            # Of one shape, so that it is traced once.
            others = mx.concatenate([*before, mx.zeros(max(lacks, 0))])
        if self._compiled:
            batches = [list(batch) for batch in batches]  # type: ignore[misc]
            values, measures, told = self._compiled_step(clip, kind)(batches, numbers, others)
        else:
            values, measures, told = self._step(batches, clip, kind, numbers, others)
        return Outcome(values, measures, self._metrics, told)

    def is_lazy(self, accumulate: int) -> bool:
        """Whether a step of so many batches evaluates nothing of itself."""
        return self._compiled or accumulate == 1

    def alone(self, batches: Sequence[Batch]) -> Any:
        """The step without other ranks and without `compiled`: loss, and the update."""
        loss, _, gradients = self._accumulated(batches)
        self.optimizer.update(self.model, gradients)
        return loss, gradients

    def _compiled_step(self, clip: float | None, kind: Kind) -> Callable[..., Any]:
        key = self._key, clip, kind
        found = self._steps.get(key)
        if found is None:
            state = [self.model.state, self.optimizer.state, mx.random.state]

            @functools.partial(mx.compile, inputs=state, outputs=state)
            def compiled(batches: Any, *told: Any) -> Any:
                return self._step(batches, clip, kind, *told)

            def first(batches: Any, *told: Any) -> Any:
                """A mistake in what is traced leaves MLX's placeholders in the state."""
                trees = [containers(self.model), containers(self.optimizer)]
                parts = frozen.freeze(trees, complete=False)
                random = frozen.random_key()
                try:
                    result = compiled(batches, *told)
                except Exception:
                    frozen.put_back(parts or [])
                    frozen.seed(random)
                    raise
                self._steps[key] = compiled
                return result

            found = first
        return found

    def _step(
        self,
        batches: Sequence[Batch],
        clip: float | None,
        kind: Kind,
        numbers: mx.array,
        before: mx.array | None,
    ) -> Result:
        loss, metrics, gradients = self._accumulated(batches)
        self._metrics = tuple(metrics)
        values, own = _row(loss, metrics), gradients
        told = [] if before is None else [before]
        gradients, told = self._averaged(gradients, [numbers, values, *told], kind.last)
        norm = None
        averaged = gradients
        if clip is not None:
            gradients, norm = optim.clip_grad_norm(gradients, clip)
        parameters = dict(flat(self.model.trainable_parameters())) if kind.measured else {}
        self.optimizer.update(self.model, gradients)
        measures: dict[str, mx.array] = {} if norm is None else {"grad_norm": norm}
        if kind.measured:
            given = dict(flat(averaged))
            lone = given if self._group.size() == 1 else dict(flat(own))
            after = dict(flat(self.model.trainable_parameters()))
            measures |= of_gradients(lone, given, list(parameters))
            measures |= of_update(parameters, after)
        return values, measures, told

    def _averaged(
        self, gradients: Any, own: list[mx.array], last: bool
    ) -> tuple[Any, list[mx.array]]:
        """Gradients averaged over the ranks; what these tell each other goes along.

        A collective of its own would cost a short step some percents. Of another type than all
        gradients it would keep MLX from averaging them at once, though. Zeros go along where there
        is nothing to tell: else the sums of three or more ranks would be in another order.

        Parameters
        ----------
        own
            Numbers, values, and those of the steps before where there were any: float32 each.
        last
            Whether it ends a lease.
        """
        size = self._group.size()
        if not self._tells_along or (size == 2 and not last):  # of two, either order is the same
            return average_gradients(gradients, group=self.site), []
        mine, zeros = self._rows_of(own[0].size + MOST * own[1].size)
        if not last:
            along = {"gradients": gradients, "told": zeros}
            return average_gradients(along, group=self.site)["gradients"], []
        row = mx.concatenate(own)
        if row.size > zeros.shape[1]:  # steps before had more metrics
            return average_gradients(gradients, group=self.site), []
        row = mx.pad(row, (0, zeros.shape[1] - row.size))
        along = {"gradients": gradients, "told": mx.where(mine, row, zeros)}
        found = average_gradients(along, group=self.site)
        return found["gradients"], [found["told"] * size]

    @property
    def _tells_along(self) -> bool:
        """Whether what ranks tell each other goes along with gradients."""
        return self._alike and self._group.size() > 1

    def _rows_of(self, width: int) -> tuple[mx.array, mx.array]:
        """Which row is this rank's, bool [ranks, 1], and zeros [ranks, width].

        Of the group of now: ranks may be dropped. Made of data, as it may be while a step is
        traced.
        """
        ranks, rank = self._group.size(), self._group.rank()
        found = self._rows.get((ranks, rank, width))
        if found is None:
            mine = mx.array(np.arange(ranks)[:, None] == rank)
            found = mine, mx.array(np.zeros((ranks, width), np.float32))
            self._rows[ranks, rank, width] = found
        return found

    def _accumulated(self, batches: Sequence[Batch]) -> tuple[mx.array, dict[str, mx.array], Any]:
        (loss, metrics), gradients = self._value_and_grad(*batches[0])
        for batch in batches[1:]:
            if not self._compiled:
                mx.eval(loss, metrics, gradients)  # so that one batch's activations are held
            (other, others), more = self._value_and_grad(*batch)
            loss = loss + other
            metrics = {name: value + others[name] for name, value in metrics.items()}
            gradients = tree_map(mx.add, gradients, more)
        if len(batches) > 1:
            share = 1 / len(batches)
            loss, metrics = loss * share, {name: each * share for name, each in metrics.items()}
            gradients = tree_map(lambda gradient: gradient * share, gradients)
        return loss, metrics, gradients


class CustomProgram:
    """A step of the user's.

    Parameters
    ----------
    step
        ``step(*batch)``: updates its state, and returns the loss, ``(loss, metrics)``, or a dict.
    modules
        The modules in its state.
    group
        The ranks.

    Attributes
    ----------
    names : list of str
        The paths of the parameters that are trained now.
    """

    def __init__(
        self, step: Loss, modules: Mapping[str, Module], group: mx.distributed.Group
    ) -> None:
        self._take, self._modules, self._group = step, modules, group
        self.refresh()

    def refresh(self, trained: bool = True) -> None:
        """As `Program.refresh`."""
        if trained:
            self.names = list(self._parameters())

    def _parameters(self) -> dict[str, mx.array]:
        return dict(over(self._modules, lambda module: flat(module.trainable_parameters())))

    def __call__(
        self,
        batches: Sequence[Batch],
        clip: float | None,
        kind: Kind,
        numbers: mx.array,
        before: Sequence[mx.array],
    ) -> Outcome:
        """As `Program`; the step clips for itself, and nothing goes along."""
        parameters = self._parameters() if kind.measured else {}
        loss, metrics = read_result(self._take(*batches[0]))
        measures = of_update(parameters, self._parameters()) if parameters else {}
        return Outcome(_row(loss, metrics), measures, tuple(metrics))

    def alone(self, batches: Sequence[Batch]) -> Any:
        """The step."""
        return read_result(self._take(*batches[0]))[0]


def _numbers(optimizer: optim.Optimizer) -> dict[str, str]:
    """The settings of an optimizer that are no arrays, as text."""
    if isinstance(optimizer, optim.MultiOptimizer):
        return {
            f"{number}.{name}": value
            for number, each in enumerate(optimizer.optimizers)
            for name, value in _numbers(each).items()
        }
    return {
        name: repr(value)
        for name, value in vars(optimizer).items()
        if isinstance(value, (bool, int, float, str, tuple, list)) and name != "_initialized"
    } | {"schedules": repr(sorted(optimizer._schedulers))}
