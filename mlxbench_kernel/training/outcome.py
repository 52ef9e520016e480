"""What one training step gives, and in which variants there are steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

from mlxbench_kernel.errors import UsageError

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
    told : list of float32 [ranks, numbers] and [ranks, 1 + metrics]
        Both, where at the end of a lease the ranks' numbers and `values` went along with their
        gradients: divided by the number of ranks.
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


def row(loss: mx.array, metrics: Mapping[str, mx.array]) -> mx.array:
    """Loss and metrics as `Outcome.values`."""
    return mx.stack([loss, *metrics.values()]) if metrics else loss.reshape(1)
