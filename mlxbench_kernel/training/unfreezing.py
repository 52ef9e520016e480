"""What becomes of a frozen layer that is to be trained again."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.training.measures import flat


class Unfreezing:
    """Knows what was trained when a stepper was made.

    ``Module.unfreeze`` would train what was never meant to be: running statistics in a block, and
    the weights below an adapter.

    Parameters
    ----------
    modules
        Of the stepper.
    """

    def __init__(self, modules: Iterable[Module]) -> None:
        self._first = [
            (each, frozenset(each._no_grad)) for module in modules for each in module.modules()
        ]

    def unfreeze(self, module: Module) -> None:
        """Train what was trained of a module at first; where that was nothing, all of it."""
        inside = {id(each) for each in module.modules()}
        for each, frozen in self._first:
            if id(each) in inside:
                each._no_grad = set(frozen)
        if not flat(module.trainable_parameters()):
            for each in module.modules():
                each.unfreeze(recurse=False)  # of which kinds of layers have their own

    def hindrance(self, module: Module) -> str:
        """The first weight of those that cannot be trained, "" where all can; changes nothing."""
        before = [(each, each._no_grad) for each in module.modules()]
        for each, frozen in before:
            each._no_grad = set(frozen)
        try:
            self.unfreeze(module)
            trained = flat(module.trainable_parameters())
        finally:
            for each, frozen in before:
                each._no_grad = frozen
        return next((n for n, each in trained if not mx.issubdtype(each.dtype, mx.inexact)), "")
