"""Layers that keep nothing for their gradients but their input, and are computed again for them.

``mlx_lm.tuner.trainer.grad_checkpoint`` does so for a whole class, for good. Here it is done to the
layers of one model, can be undone, and does not touch generating.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx.nn.layers.base import Module
from mlx.nn.utils import checkpoint

from mlxbench_kernel.models.losses import training

_MARK = "_mlxbench_recomputed"


def recompute(layers: Sequence[Module]) -> None:
    """Have layers computed again for their gradients, in training mode."""
    kinds: dict[type, type] = {}
    for layer in layers:
        kind = type(layer)
        if not hasattr(kind, _MARK):
            if kind not in kinds:
                kinds[kind] = _recomputed(kind)
            layer.__class__ = kinds[kind]


def as_before(layers: Sequence[Module]) -> None:
    """Undo `recompute`."""
    for layer in layers:
        if hasattr(type(layer), _MARK):
            layer.__class__ = type(layer).__bases__[0]


def _recomputed(kind: type) -> type:
    plain: Any = kind

    def call(self: Module, *arguments: Any, **keywords: Any) -> Any:
        if not self.training:
            return plain.__call__(self, *arguments, **keywords)

        def again(*arguments: Any, **keywords: Any) -> Any:
            with training(self):  # when gradients are computed the model is not any more
                return plain.__call__(self, *arguments, **keywords)

        return checkpoint(self, again)(*arguments, **keywords)

    content = {"__call__": call, "__module__": kind.__module__, _MARK: True}
    return type(kind.__name__, (kind,), content)
