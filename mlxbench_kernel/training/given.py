"""What a `Stepper` is given, checked: each mistake is one line that says what to type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError


def trees_of(
    model: Any, optimizer: Any, loss_fn: Any, batches: Any, step: Any, state: Any
) -> dict[str, Any]:
    """What a step changes, by name."""
    if batches is None:
        raise UsageError("Stepper: no batches: Stepper(model, optimizer, loss_fn, batches)")
    if step is not None:
        if model is not None or optimizer is not None or loss_fn is not None:
            raise UsageError(
                "Stepper: give model, optimizer and loss_fn, or step=… with state=…, not both"
            )
        if not callable(step):
            raise UsageError(f"Stepper: step is a {type(step).__name__}, not a function")
        if not isinstance(state, Mapping) or not state:
            raise UsageError(
                "Stepper: a step of your own needs state={'model': model, …}: all that it changes"
            )
        kinds = (dict, list, optim.Optimizer)
        for name, tree in state.items():
            if not isinstance(tree, kinds):
                raise UsageError(
                    f"Stepper: state {name!r} is a {type(tree).__name__}; it takes modules, "
                    "optimizers, dicts and lists"
                )
        return dict(state)
    for name, given, kind in (
        ("model", model, Module), ("optimizer", optimizer, optim.Optimizer),
    ):  # fmt: skip
        if not isinstance(given, kind):
            raise UsageError(
                f"Stepper: {name} is a {type(given).__name__}: "
                "Stepper(model, optimizer, loss_fn, batches)"
            )
    if not callable(loss_fn):
        raise UsageError(
            f"Stepper: loss_fn is a {type(loss_fn).__name__}, not a function of model and batch"
        )
    if state is not None:
        raise UsageError("Stepper: state=… goes with step=…")
    return {"model": model, "optimizer": optimizer}


def optimizers_of(trees: Mapping[str, Any]) -> dict[str, optim.Optimizer]:
    """The optimizers in a state, by what their settings' names begin with."""
    found: list[tuple[str, optim.Optimizer]] = []
    for name, tree in trees.items():
        if isinstance(tree, optim.MultiOptimizer):
            found += [(f"{name}.{number}.", each) for number, each in enumerate(tree.optimizers)]
        elif isinstance(tree, optim.Optimizer):
            found.append((f"{name}.", tree))
    return {"": found[0][1]} if len(found) == 1 else dict(found)
