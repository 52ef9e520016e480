"""Replicas on real ranks: found to differ, made equal by a copy of one, and never half."""

from __future__ import annotations

import pytest
from running import pulled, run

from mlxbench_kernel.cluster import Cluster

SETUP = """
import numpy as np
import mlx.utils
from mlxbench_kernel.errors import BenchError
from mlxbench_kernel.training import replicas

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(8, 16), nn.Linear(16, 1)]
        self.pair = (mx.zeros(3), {"deep": mx.ones(2)})

mx.random.seed(3)
model, optimizer = Net(), optim.Adam(1e-2)
optimizer.init(model.trainable_parameters())
other = {
    "bfloat16": mx.random.normal((3, 5)).astype(mx.bfloat16),
    "complex": mx.array([1 + 2j, 3 - 4j]),
    "bool": mx.array([True, False, True]),
    "int8": mx.arange(-3, 4).astype(mx.int8),
    "int64": mx.array([-(2**40), 2**41]),
    "nan": mx.array(np.array([0x7FC00001, 0x80000000, 0xFFC00002], np.uint32)).view(mx.float32),
    "large": mx.random.normal((5_000_000,)),
    "empty": mx.zeros((0, 3)),
    "scalar": mx.array(2.5),
    "turned": mx.random.normal((30, 70)).T,
}
number = {"rank": rank}
state = [model, optimizer, other, number]
mx.eval(model, optimizer.state, other)

def differ():
    names, arrays = zip(*replicas.replicated_parameters(model))
    gathered = mx.distributed.all_gather(replicas.fingerprints(arrays)[None], group=group)
    return str(replicas.compare(names, np.array(gathered)))

def bits():
    flat = mlx.utils.tree_flatten([model, optimizer.state, other, model.pair])
    return [
        (name, np.array(each.reshape(-1).view(replicas.UNSIGNED[each.dtype.size])).tobytes())
        for name, each in flat
        if name != "2.empty" and isinstance(each, mx.array)
    ]

def said(*arguments):
    try:
        return replicas.copy_from(*arguments, group)
    except BenchError as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture(autouse=True)
def prepared(ranks: Cluster) -> None:
    run(ranks, SETUP, timeout=30)


def test_a_difference_is_found_and_copied_away(ranks: Cluster) -> None:
    assert pulled(ranks, "found = differ()") == ["None"] * 2
    first, second = pulled(
        ranks,
        """
if rank == 1:
    layer = model.layers[1]
    layer.weight[0, 3] = np.nextafter(np.float32(layer.weight[0, 3].item()), np.float32(9))
    layer.bias = layer.bias - 1
    model.pair = (mx.ones(3), model.pair[1])
    model.pair[1]["deep"] = mx.zeros(2)
    optimizer.state["layers"][0]["weight"]["m"] += 1
    for key in other:
        other[key] = mx.zeros_like(other[key])
found = differ()
""",
    )
    assert first == second == "replicas differ: layers.1.weight on rank 1 (and 1 more parameter)"
    first, second = pulled(
        ranks,
        """
layer, before, own = model.layers[1], bits(), other["large"]
copied = said(0, state)
found = [copied, differ(), bits(), bits() == before, layer is model.layers[1], number["rank"]]
""",
    )
    assert isinstance(first, list) and isinstance(second, list)
    arrays = len(first[2])
    assert arrays > 20
    assert first[:3] == second[:3] and first[1] == "None"
    assert [first[3:], second[3:]] == [[True, True, 0], [False, True, 1]]


def test_from_another_rank_and_then_a_step(ranks: Cluster) -> None:
    found = pulled(
        ranks,
        """
model.layers[0].weight += rank
copied = said(1, (model, optimizer))
optimizer.update(model, mlx.utils.tree_map(mx.ones_like, model.trainable_parameters()))
mx.eval(model, optimizer.state)
found = [bits()[:4], differ()]
""",
    )
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "model.layers[1].weight = mx.zeros((2, 16))",
            "layers.1.weight is float32 [1, 16] on rank 0 and float32 [2, 16] on rank 1",
        ),
        (
            "model.layers[0].weight = model.layers[0].weight.astype(mx.float16)",
            "layers.0.weight is float32 [16, 8] on rank 0 and float16 [16, 8] on rank 1",
        ),
        ("model.extra = mx.zeros(2)", "extra is not there on rank 0 and float32 [2] on rank 1"),
        ("model.pair = ()", "pair.0 is float32 [3] on rank 0 and not there on rank 1"),
    ],
)
def test_other_shapes_are_refused_before_anything_changes(
    ranks: Cluster, change: str, said: str
) -> None:
    found = pulled(
        ranks,
        f"""
if rank == 1:
    {change}
model.layers[0].bias += rank
before = bits()
found = [said(0, model), bits() == before]
""",
    )
    line = (
        f"UsageError: {said}: nothing was copied; build the same model and optimizer on all ranks"
    )
    assert found == [[line, True]] * 2


def test_what_one_rank_refuses_all_refuse(ranks: Cluster) -> None:
    found = pulled(
        ranks,
        """
if rank == 1:
    model.layers[0] = nn.layers.distributed.AllToShardedLinear(8, 16, group=group)
found = [said(0, model), said(2, model)]
""",
    )
    assert found[0] == found[1]
    sharded, missing = found[0]  # type: ignore[misc]
    assert sharded.startswith("UsageError: rank 1: layers.0 is sharded over the ranks")
    assert missing == ("UsageError: rank 0: there is no rank 2 to copy from; ranks are 0 to 1")
