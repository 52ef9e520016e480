"""Layers that are frozen and trained again between steps."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear

from mlxbench_kernel import Stepper
from mlxbench_kernel.errors import UsageError


def made(model: nn.Module, optimizer: optim.Optimizer | None = None, **options: Any) -> Stepper:
    def loss_fn(model: nn.Module, x: mx.array) -> mx.array:
        return mx.mean(mx.square(model(x) - 1))

    batches = [mx.random.normal((4, 64), key=mx.random.key(number)) for number in range(40)]
    return Stepper(model, optimizer or optim.Adam(1e-2), loss_fn, batches, **options)


def network() -> nn.Sequential:
    mx.random.seed(3)
    block = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm(64), nn.ReLU())
    return nn.Sequential(nn.Linear(64, 64), block, nn.Linear(64, 2))


def trained(model: nn.Module) -> list[str]:
    flat: Any = tree_flatten(model.trainable_parameters())
    return [name for name, _ in flat]


@pytest.mark.parametrize("compiled", [False, True])
def test_running_statistics_are_not_trained_after_it(compiled: bool) -> None:
    model = network()
    before = trained(model)
    run = made(model, compile=compiled)
    run.run(2)
    run.freeze("layers.1")
    run.run(2)
    run.unfreeze("layers.1")
    assert trained(model) == before
    assert run.run(2).step == 6


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "optimizer", [optim.Adam(1e-2), optim.SGD(0.1), optim.SGD(0.1, momentum=0.9)]
)
def test_what_was_never_trained_can_be(optimizer: optim.Optimizer, compiled: bool) -> None:
    model = network()
    model.layers[0].freeze()
    model.layers[1].freeze()
    run = made(model, optimizer, compile=compiled)
    run.run(3)
    still = mx.array(model.layers[0].weight)
    run.unfreeze("layers.0")
    run.unfreeze("layers.1")
    assert "layers.1.layers.1.running_mean" not in trained(model)
    run.run(3)
    assert not mx.array_equal(still, model.layers[0].weight)
    after = mx.array(model.layers[0].weight)
    run.back(5)
    assert "layers.0.weight" not in trained(model)
    run.to(6)
    assert mx.array_equal(after, model.layers[0].weight)


def test_below_an_adapter_nothing_is_trained_after_it() -> None:
    model = nn.Sequential(LoRALinear.from_base(nn.Linear(64, 64)), nn.Linear(64, 2))
    model.layers[0].linear.freeze()
    before = trained(model)
    run = made(model)
    run.freeze("layers.0")
    run.unfreeze("layers.0")
    assert trained(model) == before
    assert run.run(2).step == 2


def test_quantized_weights_are_refused_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.QuantizedLinear(64, 64), nn.Linear(64, 2))
    model.layers[0].freeze()
    run = made(model)
    run.run(2)
    with pytest.raises(UsageError, match=r"^layers.0 cannot be trained: its weight holds whole"):
        run.unfreeze("layers.0")
    assert trained(model) == ["layers.1.weight", "layers.1.bias"]
    assert not run.branches.current.edits
    assert run.run(2).step == 4


def test_kept_states_are_weighed_again() -> None:
    model = network()
    run = made(model, budget=10**9)
    for layer in ("layers.0", "layers.1"):
        run.freeze(layer)
    for _ in range(3):
        run.advance()
    few = run.snapshots.all()[-2].bytes
    for layer in ("layers.0", "layers.1"):
        run.unfreeze(layer)
    for _ in range(3):
        run.advance()
    weights = sum(each.nbytes for _, each in tree_flatten(model.trainable_parameters()))
    assert run.snapshots.all()[-2].bytes >= 3 * weights > 3 * few
