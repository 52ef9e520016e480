"""What a training step takes: mlx-lm's own step, in shapes only.

Follows ``mlx_lm/tuner/trainer.py`` of mlx-lm 0.32.2: its loss, Adam, a step that is compiled as a
whole, gradients averaged over the ranks; and for LoRA the defaults of ``mlx_lm.lora``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module
from mlx.nn.utils import average_gradients, value_and_grad
from mlx.utils import tree_map

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.collectives import Rank
from mlxbench_kernel.memory.fit.need import Need, Unknown, arrays, can_predict, peak, thinking
from mlxbench_kernel.memory.fit.stand_ins import arrays_of, bytes_of, copied, stand_in

# Of mlx_lm.lora, ``CONFIG_DEFAULTS`` (0.32.2).
LAYERS = 16
LORA = {"rank": 8, "dropout": 0.0, "scale": 20.0}


def adapted(model: Module, name: str) -> Module:
    """A copy of a model with LoRA layers, of which only those are trained.

    Raises
    ------
    UsageError
        It has no layers that they fit.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from mlxbench_kernel.graph.changes import kept

    model = copied(model)
    model.freeze()
    if isinstance(getattr(model, "layers", None), (list, tuple)):
        with kept():  # the random state, which the new layers draw from
            linear_to_lora_layers(model, LAYERS, dict(LORA))
    if not arrays(model.trainable_parameters()):
        raise UsageError(
            f"FitPlan: {name} has no layers that LoRA can be put on: type mode='train' or 'infer'"
        )
    return copied(model)


def training(model: Module, rank: Rank, context: int, batch: int, snapshots: int) -> Need:
    """What a rank needs for a step.

    Parameters
    ----------
    model
        With stand-ins for arrays; what is not frozen is trained.
    rank
        The rank; over several, gradients are averaged.
    context, batch
        Tokens of a sequence, and sequences of this rank.
    snapshots
        How many earlier states are kept.

    Raises
    ------
    Unknown
        The model cannot be called as mlx-lm's are.
    UsageError
        Nothing of it can be trained.
    """
    model.train()
    trained = model.trainable_parameters()
    if not arrays(trained):
        raise UsageError(
            "FitPlan: every parameter of the model is frozen, so nothing is trained: unfreeze "
            "some, or type mode='lora'"
        )
    parameters, gradients = bytes_of(model), bytes_of(trained)
    optimizer = optim.Adam(1e-5)
    with thinking(rank):
        optimizer.init(trained)
        optimizer.state = tree_map(
            lambda each: stand_in(each) if isinstance(each, mx.array) else each, optimizer.state
        )
        state = bytes_of(optimizer.state)
        took = _step(model, optimizer, rank, context, batch) if can_predict() else None
    gradients = gradients if took is None else min(gradients, took)
    return Need(
        parameters,
        gradients=gradients,
        optimizer=state,
        snapshots=snapshots * (bytes_of(trained) + state),
        activations=None if took is None else took - gradients,
    )


def _step(model: Module, optimizer: Any, rank: Rank, context: int, batch: int) -> int:
    """Bytes that a step takes at most beside parameters and the optimizer's state."""
    from mlx_lm.tuner.trainer import default_loss

    tokens = mx.zeros((batch, context + 1), mx.int32)  # one more, to be predicted
    lengths = mx.zeros((batch, 2), mx.int32)
    given = {
        **dict.fromkeys(arrays_of(model), True),
        **dict.fromkeys(arrays_of([model.trainable_parameters(), optimizer.state]), False),
        **dict.fromkeys(arrays_of([tokens, lengths]), True),
    }
    loss_and_gradients = value_and_grad(model, default_loss)
    group: Any = rank
    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(tokens: mx.array, lengths: mx.array) -> Any:
        found, gradients = loss_and_gradients(model, tokens, lengths)
        if rank.size() > 1:
            gradients = average_gradients(gradients, group)
        optimizer.update(model, gradients)
        return found

    found = step(tokens, lengths)
    if not all(isinstance(each, mx.array) and each.ndim == 0 for each in found):
        raise Unknown("called with tokens [batch, context] it gives no logits")
    return peak(arrays(model.state, optimizer.state, list(found)), given)
