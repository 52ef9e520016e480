"""Checkpoints of real ranks: replicated state on any number of them, sharded on as many."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from running import pulled

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training.checkpoint import load, restore, save

SETUP = """
from mlxbench_kernel.errors import BenchError
from mlxbench_kernel.training import checkpoint

mx.random.seed(3)
model, optimizer = nn.Linear(4, 2), optim.Adam(1e-2)
trees = {"model": model, "optimizer": optimizer}

def train(steps):
    value_and_grad = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x))))
    losses = []
    for _ in range(steps):
        loss, grads = value_and_grad(mx.random.normal((8, 4)))
        optimizer.update(model, nn.average_gradients(grads, group=group))
        mx.eval(loss, model.state, optimizer.state)
        losses.append(loss.item())
    return losses

def said(work, *arguments):
    try:
        return work(*arguments, group)
    except BenchError as error:
        return f"{type(error).__name__}: {error}"
"""
SHARDED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.layers.distributed.AllToShardedLinear(4, 8, group=group)
        self.down = nn.layers.distributed.ShardedToAllLinear(8, 2, group=group)
    def __call__(self, x):
        return self.down(nn.relu(self.up(x)))

model = Net()
trees = {"model": model, "optimizer": optimizer}
"""


@pytest.fixture(autouse=True)
def prepared(ranks: Cluster) -> None:
    pulled(ranks, SETUP + "mx.random.seed(7 + rank)\nfound = None")  # each draws its own


@pytest.mark.parametrize("sharded", [False, True])
def test_training_goes_on_to_the_same_bits_on_each_rank(
    ranks: Cluster, tmp_path: Path, sharded: bool
) -> None:
    place = tmp_path / "run"
    model = SHARDED if sharded else "trees['model'] = model = nn.Linear(4, 2)"
    pulled(
        ranks,
        f"""
{SHARDED if sharded else ""}
train(3)
found = str(checkpoint.save({str(place)!r}, trees, {{"step": 3}}, group))
expected = train(3)
""",
    )
    first, second = pulled(
        ranks,
        f"""
optimizer = trees["optimizer"] = optim.Adam(1e-2)
{model}
trees["optimizer"] = optimizer
loaded, about = checkpoint.load({str(place)!r}, group)
checkpoint.restore(trees, loaded, group)
found = [train(3) == expected, expected, about]
""",
    )
    assert isinstance(first, list) and isinstance(second, list)
    assert first[0] and second[0] and first[2] == second[2] == {"step": 3}
    assert first[1] != second[1], "each rank goes on with its own random numbers"
    files = sorted(file.name for file in place.iterdir())
    parts = [f"-rank-{rank}-of-2" for rank in (1, 2)] if sharded else [""]
    names = [("model", "safetensors"), ("optimizer", "safetensors"), ("stepper", "json")]
    assert files == [f"{name}{part}.{kind}" for name, kind in names for part in parts]
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_any_number_of_ranks_loads_what_is_replicated(ranks: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "two"
    found = pulled(
        ranks,
        f"""
train(2)
checkpoint.save({str(place)!r}, trees, {{}}, group)
found = model.weight.tolist()
""",
    )
    model, optimizer = nn.Linear(4, 2), optim.Adam(1e-2)
    restore({"model": model, "optimizer": optimizer}, load(place)[0])
    assert [model.weight.tolist()] * 2 == found and optimizer.step.item() == 2

    model.weight = mx.ones((2, 4))
    save(tmp_path / "one", {"model": model}, {})
    first, second = pulled(
        ranks,
        f"""
loaded, _ = checkpoint.load({str(tmp_path / "one")!r}, group)
checkpoint.restore({{"model": model}}, loaded, group)
found = [model.weight.tolist(), mx.random.normal((2,)).tolist()]
""",
    )
    assert isinstance(first, list) and isinstance(second, list)
    assert first[0] == second[0] == [[1.0] * 4] * 2 and first[1] != second[1]


def test_sharded_on_another_number_is_refused(ranks: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "run"
    pulled(ranks, f"{SHARDED}\nfound = str(checkpoint.save({str(place)!r}, trees, {{}}, group))")
    with pytest.raises(UsageError) as raised:
        load(place)
    assert str(raised.value) == (
        f"{place} holds layers that are sharded over 2 ranks and here are 1; load it on 2 ranks"
    )


def test_all_ranks_raise_what_one_has_met(ranks: Cluster, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    found = pulled(
        ranks,
        f"""
found = [
    said(checkpoint.load, {place!r}),
    said(checkpoint.save, {place!r}, trees, {{"x": len if rank else 1}}),
    said(checkpoint.save, "/proc/run", trees, {{}}),
    said(checkpoint.restore, trees if rank else {{}}, {{}}),
]
""",
    )
    assert found[0] == found[1]
    missing, about, disk, tree = found[0]  # type: ignore[misc]
    assert missing == f"UsageError: rank 0: there is no checkpoint at {place}"
    assert about.startswith("UsageError: rank 1: 'x' cannot be kept in a checkpoint")
    assert disk.startswith("StorageError: rank 0: cannot write /proc/run: ")
    assert tree == "UsageError: rank 1: the checkpoint has no model; it has nothing"
    assert not list(tmp_path.iterdir())
