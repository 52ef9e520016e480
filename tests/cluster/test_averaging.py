"""Averages of gradients on three ranks, where the order of sums shows: against MLX's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import value

from mlxbench_kernel.cluster import Cluster

COMPARED = """
from mlx.utils import tree_flatten as flat
from mlxbench_kernel.training.averaging import Averaging

def made(name):
    mx.random.seed(3 + rank)
    def array(shape, dtype=mx.float32):
        return (mx.random.normal(shape) * 100).astype(dtype)
    return {{
        "nested": {{"layers": [
            {{"weight": array((7, 5)), "bias": array((7,))}}, {{}}, {{"weight": array((3, 2, 4))}},
        ], "scale": array(()), "pair": (array((2,)), [array((9,))])}},
        "many MB": [array((n,)) for n in (5_000_000, 4_000_000, 10, 9_000_000, 3)],
        "one": {{"weight": array((11,))}},
        "half": [array((n,), mx.bfloat16) for n in (5_000_000, 4_000_000, 10, 9_000_000, 3)],
        "two dtypes": {{"a": array((5,)), "b": array((3, 3), mx.bfloat16)}},
        "bfloat16": [array((64,), mx.bfloat16), array((4, 4), mx.bfloat16)],
        "none": {{"layers": [{{}}, {{}}]}},
    }}[name]

average, found = Averaging(), []
for name in {names!r}:
    tree = made(name)
    for _ in range(2):  # the second time with what is known of the first
        ours, along = average(tree, group)
        theirs = nn.average_gradients(tree, group)
        pairs = list(zip(flat(ours), flat(theirs), strict=True))
        found.append(not along and all(
            one == other and a.dtype == b.dtype and a.shape == b.shape and mx.array_equal(a, b)
            for (one, a), (other, b) in pairs
        ))
found
"""
ALONG = """
more = [mx.full((2, 3), float(rank)), mx.array([rank == 1], mx.float32)]
found = []
for name in ("nested", "many MB"):
    tree = made(name)
    ours, along = average(tree, group, more)
    alike = all(  # of three ranks, in another order of the sums
        mx.allclose(a, b, atol=1e-4).item()
        for (_, a), (_, b) in zip(flat(ours), flat(nn.average_gradients(tree, group)), strict=True)
    )
    found.append((alike, [each.tolist() for each in along], average(tree, group)[1]))
found
"""


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    cluster = Cluster.up(3, seed=7)
    yield cluster
    cluster.down()


def test_they_have_the_bits_of_mlx(three: Cluster) -> None:
    names = ["nested", "many MB", "half", "one", "two dtypes", "bfloat16", "none", "nested"]
    found = value(three, COMPARED.format(names=names))
    assert found == {rank: [True] * 16 for rank in range(3)}


def test_more_may_go_along(three: Cluster) -> None:
    value(three, COMPARED.format(names=["nested"]))
    averages = [[[1.0] * 3] * 2, [pytest.approx(1 / 3)]]
    assert value(three, ALONG) == {rank: [(True, averages, [])] * 2 for rank in range(3)}
