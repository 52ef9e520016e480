"""What one training step computes: loss, gradients, their average over ranks, the update.

A step has two variants. The plain one computes what training needs; the *measured* one also
reduces every gradient, update and weight to a few numbers, which costs a pass over each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_map

from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.frozen import containers
from mlxbench_kernel.training.averaging import Averaging
from mlxbench_kernel.training.batches import Batch
from mlxbench_kernel.training.measures import flat, of_gradients, of_update
from mlxbench_kernel.training.outcome import Kind, Outcome, read_result, row
from mlxbench_kernel.training.settings import over
from mlxbench_kernel.training.telling import padded

Loss = Callable[..., Any]
Result = tuple[mx.array, dict[str, mx.array], list[mx.array]]  # as in `Outcome`


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
    given : callable
        The user's function.
    trained : dict of str to mlx.core.Dtype
        What is trained now, by the path of the parameter.
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
        self.model, self.optimizer, self.given = model, optimizer, loss_fn
        self._group = self.site = group
        self._compiled = compiled
        self._steps: dict[Hashable, tuple[Callable[..., Result], tuple[str, ...]]] = {}
        self._metrics: tuple[str, ...] = ()
        self._key: Hashable = None
        self._average = Averaging()
        self.trained: dict[str, mx.Dtype] = {}

        def both(*batch: Any) -> tuple[mx.array, dict[str, mx.array]]:
            return read_result(loss_fn(model, *batch))

        self._value_and_grad = value_and_grad(model, both)
        self.refresh()

    def refresh(self) -> bool:
        """Take note that settings, or what is trained, may have changed.

        Returns
        -------
        bool
            Whether names and dtypes of what is trained are what they were.
        """
        before, self.trained = self.trained, _dtypes(flat(self.model.trainable_parameters()))
        self._alike = set(self.trained.values()) == {mx.float32}
        self.refresh_settings()
        return self.trained == before

    def refresh_settings(self) -> None:
        """Take note that settings may have changed."""
        # What a trace depends on beside shapes.
        numbers = tuple(sorted(_numbers(self.optimizer).items()))
        self._key = numbers, tuple(self.trained), self.model.training

    def __call__(
        self,
        batches: Sequence[Batch],
        clip: float | None,
        kind: Kind,
        numbers: mx.array,
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
            What this rank has to tell the others at the end of a lease, in its row, 0 in those of
            the others: float32 [ranks, n].
        """
        if not self._tells_along:
            kind = Kind(kind.measured, False)
        if self._compiled:
            batches = [list(batch) for batch in batches]  # type: ignore[misc]
            values, measures, told = self._compiled_step(batches, clip, kind, numbers)
        else:
            values, measures, told = self._step(batches, clip, kind, numbers)
        return Outcome(values, measures, self._metrics, told)

    def train_more(self) -> None:
        """Make room in the optimizer for what it has not trained before; lazily."""
        self.optimizer.init(self.model.trainable_parameters())

    def is_lazy(self, accumulate: int) -> bool:
        """Whether a step of so many batches evaluates nothing of itself."""
        return self._compiled or accumulate == 1

    def alone(self, batches: Sequence[Batch]) -> Any:
        """The step without other ranks and without `compiled`: loss, and the update."""
        loss, _, gradients = self._accumulated(batches)
        self.optimizer.update(self.model, gradients)
        return loss, gradients

    def _compiled_step(
        self, batches: Sequence[Batch], clip: float | None, kind: Kind, numbers: mx.array
    ) -> Result:
        """A step by what was traced of one of the same form, with the names of its metrics."""
        key = self._key, clip, kind, numbers.shape, *_forms(batches)
        known = self._steps.get(key)
        if known is not None:
            step, self._metrics = known
            return step(batches, numbers)
        state = [self.model.state, self.optimizer.state, mx.random.state]

        @functools.partial(mx.compile, inputs=state, outputs=state)
        def compiled(batches: Any, numbers: mx.array) -> Any:
            return self._step(batches, clip, kind, numbers)

        # A mistake in what is traced leaves MLX's placeholders in the state.
        parts = frozen.freeze([containers(self.model), containers(self.optimizer)], complete=False)
        random = frozen.random_key()
        try:
            result: Result = compiled(batches, numbers)
        except Exception:
            frozen.put_back(parts or [])
            frozen.seed(random)
            raise
        self._steps[key] = compiled, self._metrics
        return result

    def _step(
        self,
        batches: Sequence[Batch],
        clip: float | None,
        kind: Kind,
        numbers: mx.array,
    ) -> Result:
        loss, metrics, gradients = self._accumulated(batches)
        self._metrics = tuple(metrics)
        values, own = row(loss, metrics), gradients
        gradients, told = self._averaged(gradients, numbers, values, kind.last)
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
        self, gradients: Any, numbers: mx.array, values: mx.array, last: bool
    ) -> tuple[Any, list[mx.array]]:
        """Gradients averaged over the ranks; what these tell each other goes along.

        A collective of its own would cost a short step some percents. Of another type than all
        gradients it would keep MLX from averaging them at once, though. Of three or more ranks
        it goes along with each step: else sums would be in another order.

        Parameters
        ----------
        numbers, values, last
            What there is to tell, and whether this step ends a lease.
        """
        size = self._group.size()
        if not self._tells_along or (size == 2 and not last):  # of two, either order is the same
            return self._average(gradients, self.site)
        # In the group of now: ranks may be dropped.
        before = self._group.rank()
        mine = mx.pad(values[None], [(before, size - 1 - before), (0, 0)])
        along = [padded(numbers, values.size), mine]
        averaged, told = self._average(gradients, self.site, along)
        return averaged, told if last else []

    @property
    def _tells_along(self) -> bool:
        """Whether what ranks tell each other goes along with gradients."""
        return self._alike and self._group.size() > 1

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
    given : callable
        The user's function.
    trained : dict of str to mlx.core.Dtype
        What is trained now, by the path of the parameter.
    """

    def __init__(
        self, step: Loss, modules: Mapping[str, Module], group: mx.distributed.Group
    ) -> None:
        self.given, self._modules, self._group = step, modules, group
        self.site = group  # of no use where the step averages for itself
        self.trained: dict[str, mx.Dtype] = {}
        self.refresh()

    def refresh(self) -> bool:
        """As `Program.refresh`."""
        before, self.trained = self.trained, _dtypes(self._parameters().items())
        return self.trained == before

    def refresh_settings(self) -> None:
        """As `Program.refresh_settings`; a step has its own."""

    def train_more(self) -> None:
        """As `Program.train_more`; whose optimizer trains what is a matter of the step."""

    def _parameters(self) -> dict[str, mx.array]:
        return dict(over(self._modules, lambda module: flat(module.trainable_parameters())))

    def __call__(
        self,
        batches: Sequence[Batch],
        clip: float | None,
        kind: Kind,
        numbers: mx.array,
    ) -> Outcome:
        """As `Program`; the step clips for itself, and nothing goes along."""
        parameters = self._parameters() if kind.measured else {}
        loss, metrics = read_result(self.given(*batches[0]))
        measures = of_update(parameters, self._parameters()) if parameters else {}
        return Outcome(row(loss, metrics), measures, tuple(metrics))

    def alone(self, batches: Sequence[Batch]) -> Any:
        """The step."""
        return read_result(self.given(*batches[0]))[0]


def _forms(batches: Sequence[Batch]) -> Iterator[Hashable]:
    """What a trace depends on of the batches: shapes and dtypes, and whatever is no array."""
    leaves: Any = tree_flatten(batches)
    for path, leaf in leaves:
        yield (path, leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else (path, repr(leaf))


def _dtypes(arrays: Iterable[tuple[str, mx.array]]) -> dict[str, mx.Dtype]:
    return {name: array.dtype for name, array in arrays}


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
