"""Reading a lazy graph, and capturing a whole training step.

Ours: `mlxbench_kernel.graph.read`. References, on the same arrays by turns: MLX's own
``mx.export_to_dot``, which gives names and edges, and ``mx.export_function`` with a callback,
which also gives shapes and arguments but changes the graph, so that each of its turns gets a
graph of its own. Both recurse, so the graph is wide rather than deep.

Also printed: seconds for 100 000 nodes (target 0.2), for a chain of a million, and for the whole
capture of a training step of a Llama of 128 layers with names and modules.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from measure import Comparison, Report, arguments, by_turns
from mlx_lm.models.llama import Model, ModelArgs

from mlxbench_kernel.graph import capture, read

TARGET_SECONDS = 0.2
TARGET = 1.0


def wide(nodes: int, depth: int = 1000) -> list[mx.array]:
    """Chains of `depth` nodes; the constant of each addition is a node too."""
    outputs = []
    for number in range(nodes // (2 * depth)):
        array = mx.array(float(number))
        for _ in range(depth):
            array = array + 1.0
        outputs.append(array)
    return outputs


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def training_step(layers: int) -> tuple[Callable[[mx.array], mx.array], mx.array, dict[str, Any]]:
    """A step of Adam, a batch, and the variables that name them."""
    model = Model(
        ModelArgs(
            model_type="llama", hidden_size=64, num_hidden_layers=layers, intermediate_size=128,
            num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-5, vocab_size=100,
        )
    )  # fmt: skip
    optimizer = optim.Adam(1e-3)
    optimizer.init(model.trainable_parameters())
    x = mx.random.randint(0, 100, (2, 16))
    mx.eval(model.parameters(), optimizer.state, x)
    value_and_grad = nn.value_and_grad(
        model, lambda model, x: nn.losses.cross_entropy(model(x), x).mean()
    )

    def step(x: mx.array) -> mx.array:
        loss, gradients = value_and_grad(model, x)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        return loss

    return step, x, {"model": model, "optimizer": optimizer, "x": x}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, pairs=9)
    options = parser.parse_args()
    report = Report(options.check)
    outputs = wide(100_000)
    read(outputs)

    def ours() -> float:
        return seconds(lambda: read(outputs))

    def dot() -> float:
        return seconds(lambda: mx.export_to_dot(io.StringIO(), *outputs))

    def exported() -> float:
        own = wide(100_000)
        return seconds(lambda: mx.export_function(lambda said: None, lambda: own))

    for name, reference in (("export_to_dot", dot), ("export_function(callback)", exported)):
        mine, theirs = by_turns(ours, reference, pairs=options.pairs, warm_up=1)
        report.add(Comparison("reading 100 000 nodes", name, mine, theirs, TARGET))
    print(f"100 000 nodes: {float(np.median(mine)):.3f} s (target {TARGET_SECONDS} s)")
    chain = mx.array(0.0)
    for _ in range(1_000_000):
        chain = chain + 1.0
    print(f"a chain of 1 000 000 additions: {seconds(lambda: read([chain])):.2f} s")
    step, x, names = training_step(128)
    graph = capture(step, x, namespace=names)
    took = seconds(lambda: capture(step, x, namespace=names))
    print(f"a training step of a Llama of 128 layers, {graph.nodes} nodes: {took:.2f} s")
    report.leave()


if __name__ == "__main__":
    main()
