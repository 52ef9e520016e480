"""Makes a model one that can be tuned, and what was put on it off again; with mlx-lm's layers."""

from __future__ import annotations

import difflib
from typing import Any

import mlx.optimizers as optim
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_flatten, tree_unflatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.options import OPTIMIZERS, Options

INSIDE = ("linear", "embedding")  # what mlx-lm's layers call that which they were put on


def check(model: Any, options: Options) -> None:
    """Check that a model has what is to be tuned.

    Raises
    ------
    UsageError
        It has not.
    """
    if options.method == "full" and is_quantized(model):
        raise UsageError(
            "the model is quantized, and quantized weights cannot be trained: type method='lora' "
            "or 'dora', or load one that is not"
        )
    if options.method != "full":
        _require_keys(model, options)


def put_on(model: Any, options: Options) -> None:
    """Freeze a model, and have of it tuned what the options say.

    New weights are drawn from ``mx.random``, as mlx-lm draws them.

    Raises
    ------
    UsageError
        That does not go with this model; nothing is on it.
    """
    assert options.num_layers is not None
    if options.method == "full":
        model.freeze()
        for layer in model.layers[-max(options.num_layers, 0) :]:
            layer.unfreeze()
        return
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model.freeze()
    config: Any = options.layer_parameters
    try:
        linear_to_lora_layers(model, options.num_layers, config, use_dora=options.method == "dora")
    except ValueError as error:  # layers that have no such form
        take_off(model)
        raise UsageError(
            f"method={options.method!r} does not go with this model ({error}): type "
            "method='lora', or name other layers in keys"
        ) from None
    if not tree_flatten(model.trainable_parameters()):
        take_off(model)
        raise UsageError(
            f"keys={list(options.keys or [])!r} are in none of the last {options.num_layers} "
            "layers: type a larger num_layers, or -1 for all"
        )


def take_off(model: Module) -> int:
    """Have the layers back that adapters were put on; how many there were."""
    found = []
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith("mlx_lm.tuner.") and hasattr(module, "fuse"):
            below: Any = module
            while type(below).__module__.startswith("mlx_lm.tuner."):
                below = next(below[each] for each in INSIDE if each in below)
            found.append((name, below))
    # Of one that is inside another, the outer one's is right.
    names = [name for name, _ in found]
    outer = [
        (name, below)
        for name, below in found
        if not any(name.startswith(f"{other}.") for other in names)
    ]
    if outer:
        model.update_modules(tree_unflatten(outer))
    return len(outer)


def is_quantized(model: Module) -> bool:
    """Whether some of its weights are quantized."""
    return any(
        hasattr(module, "bits") and hasattr(module, "group_size") for module in model.modules()
    )


def make_optimizer(options: Options) -> optim.Optimizer:
    """The optimizer, as ``mlx_lm.lora`` makes it.

    Raises
    ------
    UsageError
        It does not take what was given for it, or there is no such schedule.
    """
    rate: Any = options.learning_rate
    if options.lr_schedule:
        from mlx_lm.tuner.utils import build_schedule

        try:
            rate = build_schedule(dict(options.lr_schedule))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UsageError(
                f"lr_schedule={dict(options.lr_schedule)!r} is none of mlx-lm's ({error}): type "
                "{'name': 'cosine_decay', 'arguments': [1e-5, 1000], 'warmup': 100}"
            ) from None
    kind: Any = getattr(optim, OPTIMIZERS[options.optimizer])
    try:
        made: optim.Optimizer = kind(learning_rate=rate, **(options.optimizer_config or {}))
    except TypeError as error:
        raise UsageError(
            f"optimizer_config={dict(options.optimizer_config or {})!r} is not what "
            f"{options.optimizer} takes ({error})"
        ) from None
    return made


def _require_keys(model: Any, options: Options) -> None:
    if options.keys is None:
        return
    kinds = (Linear, QuantizedLinear, Embedding, QuantizedEmbedding)

    def takes(module: Module) -> bool:
        return (
            isinstance(module, kinds)
            or hasattr(module, "to_lora")
            or hasattr(module, "lora_a")  # that was tuned before
            or type(module).__name__ in ("SwitchLinear", "QuantizedSwitchLinear")
        )

    known = {name for name, module in model.named_modules() if takes(module)}
    for layer in model.layers:
        known |= {name for name, module in layer.named_modules() if takes(module)}
    for key in options.keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 3, 0.4)
            inside = sorted(
                name for name, module in model.layers[-1].named_modules() if takes(module)
            )
            meant = f"did you mean {' or '.join(near)}?" if near else f"type {', '.join(inside)}"
            raise UsageError(f"there is no layer {key!r} to put an adapter on: {meant}")
