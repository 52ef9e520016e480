"""Models for the tests of graphs, and what training them computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from mlxbench_kernel.graph import Graph, capture


@dataclass
class Case:
    """A model, an input, and its loss."""

    model: nn.Module
    x: mx.array
    loss: Callable[[nn.Module, mx.array], mx.array]

    def outputs(self, part: str) -> list[mx.array]:
        """What "forward", "backward" or "step" (of Adam) computes, lazily."""
        if part == "forward":
            return [self.loss(self.model, self.x)]
        loss, gradients = nn.value_and_grad(self.model, self.loss)(self.model, self.x)
        if part == "backward":
            return [loss, *(array for _, array in tree_flatten(gradients))]
        optimizer = optim.Adam(1e-3)
        optimizer.init(self.model.trainable_parameters())
        mx.eval(optimizer.state)
        optimizer.update(self.model, gradients)
        state = tree_flatten([self.model.parameters(), optimizer.state])
        return [loss, *(array for _, array in state)]


def mlp() -> Case:
    model = nn.Sequential(
        nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512)
    )
    return _case(model, mx.random.normal((512, 512)), lambda m, x: mx.mean(mx.square(m(x))))


def convolutional() -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
    )  # fmt: skip
    return _case(model, mx.random.normal((8, 64, 64, 3)), lambda m, x: mx.mean(mx.square(m(x))))


def deeper_convolutional() -> Case:
    model = nn.Sequential(
        nn.Conv2d(8, 24, 5, padding=2), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(24, 24, 3, padding=1),
        nn.SiLU(), nn.Conv2d(24, 40, 1),
    )  # fmt: skip
    return _case(model, mx.random.normal((4, 48, 48, 8)), lambda m, x: mx.mean(mx.square(m(x))))


def llama(layers: int = 4, width: int = 256, vocabulary: int = 1000, batch: int = 4) -> Case:
    model = Model(
        ModelArgs(
            model_type="llama", hidden_size=width, num_hidden_layers=layers,
            intermediate_size=2 * width, num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-5, vocab_size=vocabulary, tie_word_embeddings=False,
        )
    )  # fmt: skip
    x = mx.random.randint(0, vocabulary, (batch, 128))
    return _case(model, x, lambda m, x: nn.losses.cross_entropy(m(x), x).mean())


def small_llama(layers: int = 4) -> Case:
    """Of a size for tests that look at structure alone."""
    return llama(layers, width=32, vocabulary=50, batch=1)


def training_graph(case: Case, **options: Any) -> Graph:
    """A captured step of Adam."""
    optimizer = optim.Adam(1e-3)
    optimizer.init(case.model.trainable_parameters())
    mx.eval(optimizer.state)
    value_and_grad = nn.value_and_grad(case.model, case.loss)

    def step(x: mx.array) -> mx.array:
        loss, gradients = value_and_grad(case.model, x)
        optimizer.update(case.model, gradients)
        return loss

    names = {"model": case.model, "optimizer": optimizer, "x": case.x}
    return capture(step, case.x, namespace=names, title="step(x)", **options)


def _case(model: nn.Module, x: mx.array, loss: Callable[[nn.Module, mx.array], mx.array]) -> Case:
    mx.eval(model.parameters(), x)
    return Case(model, x, loss)
