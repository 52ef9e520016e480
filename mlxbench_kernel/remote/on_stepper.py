"""Drives the stepper of a rank for the notebook; this runs on the rank."""

from __future__ import annotations

from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training import Stop, current

NONE = "no stepper: make one in a %%mlx_dist cell, as Stepper(model, optimizer, loss_fn, batches)"


def on_stepper(name: str, *arguments: Any) -> Any:
    """Call a method of the rank's stepper; what it returned, a `Stop` as a dict."""
    stepper = current()
    if stepper is None:
        raise UsageError(NONE)
    try:
        result = getattr(stepper, name)(*arguments)
        return vars(result) if isinstance(result, Stop) else result
    finally:
        stepper.report.look()
