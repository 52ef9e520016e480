"""What one training step computes: loss, gradients, their average over ranks, the update.

A step has two variants. The plain one computes what training needs; the *measured* one also
reduces every gradient, update and weight to a few numbers, which costs a pass over each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module
from mlx.nn.utils import average_gradients, value_and_grad
from mlx.utils import tree_flatten, tree_map

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.frozen import containers
from mlxbench_kernel.training.batches import Batch
from mlxbench_kernel.training.settings import over

Loss = Callable[..., Any]
Result = tuple[mx.array, dict[str, mx.array], list[mx.array]]  # as in `Outcome`


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
    told : list of float32 [ranks, numbers + 1 + metrics]
        One, where the ranks' numbers and `values` went along with their gradients.
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
        self._group = group
        self._compiled = compiled
        self._steps: dict[Hashable, Callable[..., Result]] = {}
        self._metrics: tuple[str, ...] = ()
        self._key: Hashable = None

        def both(*batch: Any) -> tuple[mx.array, dict[str, mx.array]]:
            return read_result(loss_fn(model, *batch))

        self._value_and_grad = value_and_grad(model, both)
        self.refresh()

    def refresh(self) -> None:
        """Take note that settings, or what is trained, may have changed."""
        self.names = [name for name, _ in _flat(self.model.trainable_parameters())]
        # What a trace depends on beside shapes.
        numbers = tuple(sorted(_numbers(self.optimizer).items()))
        self._key = numbers, tuple(self.names), self.model.training

    def __call__(
        self, batches: Sequence[Batch], clip: float | None, measured: bool, numbers: mx.array
    ) -> Outcome:
        """One step, lazily; without `compiled`, batches but the last are evaluated.

        Parameters
        ----------
        batches
            Whose gradients are averaged.
        clip
            Largest norm of the averaged gradients; None for any.
        measured
            Which variant.
        numbers
            What this rank has to tell the others: float32 [n].
        """
        if self._compiled:
            batches = [list(batch) for batch in batches]  # type: ignore[misc]
            values, measures, told = self._compiled_step(clip, measured)(batches, numbers)
        else:
            values, measures, told = self._step(batches, clip, measured, numbers)
        return Outcome(values, measures, self._metrics, told)

    def alone(self, batches: Sequence[Batch]) -> Any:
        """The step without other ranks and without `compiled`: loss, and the update."""
        loss, _, gradients = self._accumulated(batches)
        self.optimizer.update(self.model, gradients)
        return loss, gradients

    def _compiled_step(self, clip: float | None, measured: bool) -> Callable[..., Any]:
        key = self._key, clip, measured
        found = self._steps.get(key)
        if found is None:
            state = [self.model.state, self.optimizer.state, mx.random.state]

            @functools.partial(mx.compile, inputs=state, outputs=state)
            def compiled(batches: Any, numbers: mx.array) -> Any:
                return self._step(batches, clip, measured, numbers)

            def first(batches: Any, numbers: mx.array) -> Any:
                """A mistake in what is traced leaves MLX's placeholders in the state."""
                parts = frozen.freeze([containers(self.model), containers(self.optimizer)])
                random = frozen.random_key()
                try:
                    result = compiled(batches, numbers)
                except Exception:
                    frozen.put_back(parts or [])
                    frozen.seed(random)
                    raise
                self._steps[key] = compiled
                return result

            found = first
        return found

    def _step(
        self, batches: Sequence[Batch], clip: float | None, measured: bool, numbers: mx.array
    ) -> Result:
        loss, metrics, gradients = self._accumulated(batches)
        self._metrics = tuple(metrics)
        values, own = _row(loss, metrics), gradients
        gradients, told = self._averaged(gradients, numbers, values)
        norm = None
        averaged = gradients
        if clip is not None:
            gradients, norm = optim.clip_grad_norm(gradients, clip)
        before = dict(_flat(self.model.trainable_parameters())) if measured else {}
        self.optimizer.update(self.model, gradients)
        measures: dict[str, mx.array] = {} if norm is None else {"grad_norm": norm}
        if measured:
            measures |= self._measured(own, averaged, before)
        return values, measures, told

    def _averaged(
        self, gradients: Any, numbers: mx.array, values: mx.array
    ) -> tuple[Any, list[mx.array]]:
        """Gradients averaged over the ranks; what these tell each other goes along.

        A collective of its own would cost a short step some percents. Of another type than all
        gradients it would keep MLX from averaging them at once, though.
        """
        ranks, arrays = self._group.size(), _flat(gradients)
        if ranks == 1 or not arrays or any(each.dtype != mx.float32 for _, each in arrays):
            return average_gradients(gradients, group=self._group), []
        mine = mx.arange(ranks)[:, None] == self._group.rank()  # of now: some may be dropped
        rows = mx.where(mine, mx.concatenate([numbers, values]), 0.0)
        found = average_gradients({"gradients": gradients, "told": rows}, group=self._group)
        # Not a view of what all gradients are in: it is kept until the end of a lease.
        return found["gradients"], [found["told"] * ranks]

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

    def _measured(
        self, own: Any, averaged: Any, before: Mapping[str, mx.array]
    ) -> dict[str, mx.array]:
        after = dict(_flat(self.model.trainable_parameters()))
        gradients = dict(_flat(averaged))
        names = list(before)
        updates = [_square(after[name] - before[name]) for name in names]
        weights = mx.stack([_square(before[name]) for name in names])
        squares = mx.stack([_square(gradients[name]) for name in names])
        alone = dict(_flat(own))
        lone = (
            squares
            if self._group.size() == 1
            else mx.stack([_square(alone[name]) for name in names])
        )
        update = mx.stack(updates)
        bad = mx.stack([_nonfinite(gradients[name]) for name in names])
        return {
            "grad_norm": mx.sqrt(squares.sum()),
            "grad_norm_rank": mx.sqrt(lone.sum()),
            "nonfinite": bad.sum(),
            "parameters.grad_norm": mx.sqrt(squares),
            "parameters.grad_norm_rank": mx.sqrt(lone),
            "parameters.nonfinite": bad,
            **_ratios(update, weights),
        }


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

    def refresh(self) -> None:
        """Take note that what is trained may have changed."""
        self.names = list(self._parameters())

    def _parameters(self) -> dict[str, mx.array]:
        return dict(over(self._modules, lambda module: _flat(module.trainable_parameters())))

    def __call__(
        self, batches: Sequence[Batch], clip: float | None, measured: bool, numbers: mx.array
    ) -> Outcome:
        """As `Program`; the step clips for itself, and nothing goes along."""
        before = self._parameters() if measured else {}
        loss, metrics = read_result(self._take(*batches[0]))
        measures = self._measured(before) if before else {}
        return Outcome(_row(loss, metrics), measures, tuple(metrics))

    def alone(self, batches: Sequence[Batch]) -> Any:
        """The step."""
        return read_result(self._take(*batches[0]))[0]

    def _measured(self, before: Mapping[str, mx.array]) -> dict[str, mx.array]:
        after = self._parameters()
        update = mx.stack([_square(after[name] - array) for name, array in before.items()])
        weights = mx.stack([_square(array) for array in before.values()])
        return _ratios(update, weights)


def _ratios(update: mx.array, weights: mx.array) -> dict[str, mx.array]:
    """Of squared norms."""
    tiny = 1e-30
    return {
        "update_ratio": mx.sqrt(update.sum() / mx.maximum(weights.sum(), tiny)),
        "parameters.update_ratio": mx.sqrt(update / mx.maximum(weights, tiny)),
    }


def _square(array: mx.array) -> mx.array:
    return array.astype(mx.float32).square().sum()


def _nonfinite(array: mx.array) -> mx.array:
    return (~mx.isfinite(array)).astype(mx.float32).sum()


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(tree)
    return [(name, array) for name, array in flat if isinstance(array, mx.array)]


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
