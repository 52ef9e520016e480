"""Plans for several ranks against peaks that were measured on real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from fit_models import folder_of

from mlxbench_kernel import FitPlan
from mlxbench_kernel.cluster import Cluster

CONTEXT = 300
WITHIN = 0.1
GENERATE = """
import gc
from pathlib import Path
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
gc.collect(); mx.clear_cache()
before = mx.get_active_memory()
model, _ = load_model(Path({folder!r}), lazy=True)
{split}
mx.eval(model.parameters())
mx.reset_peak_memory()
for _ in generate_step(mx.zeros({context} - 2, mx.int32), model, max_tokens=2):
    pass
peak = mx.get_peak_memory() - before
del model
"""
TRAIN = """
import gc
from pathlib import Path
from functools import partial
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.utils import load_model
gc.collect(); mx.clear_cache()
before = mx.get_active_memory()
model, _ = load_model(Path({folder!r}))
model.train()
optimizer = optim.Adam(1e-5)
optimizer.init(model.trainable_parameters())
mx.eval(optimizer.state)
value_and_grad = nn.value_and_grad(model, default_loss)
state = [model.state, optimizer.state, mx.random.state]

@partial(mx.compile, inputs=state, outputs=state)
def step(tokens, lengths):
    found, gradients = value_and_grad(model, tokens, lengths)
    optimizer.update(model, nn.average_gradients(gradients, group))
    return found

tokens, lengths = mx.zeros((2, {context} + 1), mx.int32), mx.array([[0, {context}]] * 2)
mx.reset_peak_memory()
for _ in range(2):
    mx.eval(step(tokens, lengths), state)
peak = mx.get_peak_memory() - before
del model, optimizer, value_and_grad, state, step
"""


def measured(ranks: Cluster, code: str) -> list[int]:
    answer = ranks.execute(code)
    assert not answer.errors
    found = ranks.pull("peak")
    return [found[0], found[1]]


def test_tensor(ranks: Cluster, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama")
    plan = FitPlan(folder, ["1GB"] * 2, CONTEXT, shard="tensor")
    code = GENERATE.format(folder=str(folder), split="model.shard(group)", context=CONTEXT)
    needed = [row.need for row in plan.rows]
    assert needed == pytest.approx(measured(ranks, code), rel=WITHIN)


def test_a_pipeline_that_is_split_as_the_plan_says(ranks: Cluster, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "qwen2", num_hidden_layers=12)
    plan = FitPlan(folder, {"studio": "200MB", "mini": "60MB"}, CONTEXT, shard="pipeline")
    assert plan.split[0] > plan.split[1]
    split = f"model.model.pipeline(group, split={list(plan.split)})"
    code = GENERATE.format(folder=str(folder), split=split, context=CONTEXT)
    needed = [row.need for row in plan.rows]
    assert needed == pytest.approx(measured(ranks, code), rel=WITHIN)


def test_training_in_parallel(ranks: Cluster, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama", num_hidden_layers=3)
    plan = FitPlan(folder, ["1GB"] * 2, 48, 4, "train", "data", snapshots=0)
    needed = [row.need for row in plan.rows]
    code = TRAIN.format(folder=str(folder), context=48)
    assert needed == pytest.approx(measured(ranks, code), rel=WITHIN)
