"""Fingerprints that see each bit, and what is said of replicas that differ."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.nn.layers.distributed import AllToShardedLinear

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training.replicas import (
    compare,
    copy_from,
    fingerprints,
    replicated_parameters,
)

DTYPES = "bool_ int8 uint8 int16 uint16 float16 bfloat16 int32 float32 int64 uint64 complex64"
SIZES = [1, 7, 4095, 4097, 100_003]


def seen(*arrays: mx.array) -> Any:
    return np.array(fingerprints(arrays))


def drawn(dtype: str, size: int) -> mx.array:
    return (mx.random.uniform(shape=(size,)) * 100).astype(getattr(mx, dtype))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES.split())
def test_each_element_counts(dtype: str, size: int) -> None:
    array = drawn(dtype, size)
    before = seen(array)
    assert before.shape == (1, 2) and before.dtype == np.uint32
    assert (seen(mx.array(array)) == before).all()
    for index in {0, size // 2, size - 1}:
        other = mx.array(array)
        other[index] = mx.logical_not(other[index]) if dtype == "bool_" else other[index] + 1
        assert (seen(other) != before).all()


@pytest.mark.parametrize("size", [64, 1_000_000])
def test_bits_and_not_values_count(size: int) -> None:
    zeros = mx.zeros(size)
    assert (seen(zeros) != seen(-zeros)).all(), "the sign of zero"
    nan, other = np.full(size, 0x7FC00000, np.uint32), np.full(size, 0x7FC00000, np.uint32)
    other[size // 3] = 0x7FC00001
    payloads = [seen(mx.array(bits).view(mx.float32)) for bits in (nan, other)]
    assert (payloads[0] != payloads[1]).all()
    ones = mx.ones(size)
    assert (seen(ones) != seen(-ones)).all()


def test_order_counts() -> None:
    table = mx.random.normal((1000, 1021 * 2))
    rows = mx.concatenate([table[500:], table[:500]])
    columns = mx.concatenate([table[:, 8:], table[:, :8]], axis=1)
    unit = mx.eye(1024)
    swapped = mx.concatenate([unit[1:2], unit[:1], unit[2:]])
    found = seen(table, rows, columns, table.T.reshape(table.shape), unit, swapped)
    assert len({tuple(row) for row in found.tolist()}) == 6


def test_one_last_place_up_and_one_down_do_not_cancel() -> None:
    bits = np.array(mx.random.normal((1_000_000,))).view(np.uint32)
    before = seen(mx.array(bits))
    generator = np.random.default_rng(0)
    for _ in range(50):
        up, down = generator.choice(bits.size, 2, replace=False)
        changed = bits.copy()
        changed[up] += 1
        changed[down] -= 1
        assert (seen(mx.array(changed)) != before).all()


def test_how_an_array_lies_in_memory_does_not_count() -> None:
    table = mx.random.normal((300, 70))
    turned = mx.contiguous(table.T).T
    inside = mx.concatenate([table, table])[300:]
    assert (seen(table) == seen(turned)).all() and (seen(table) == seen(inside)).all()


def test_shape_dtype_and_neighbours() -> None:
    array = drawn("float32", 6000)
    as_matrix, as_integers = array.reshape(60, 100), array.view(mx.int32)
    found = seen(array, as_matrix, as_integers, mx.zeros(()), mx.zeros((0, 3)), array)
    assert (found[0] == found[5]).all(), "what stands beside it does not count"
    assert len({tuple(row) for row in found.tolist()}) == 5
    assert fingerprints([]).shape == (0, 2)


def test_many_random_bits_give_different_fingerprints() -> None:
    found = seen(*[mx.random.normal((5000,)) for _ in range(300)])
    assert len(np.unique(found[:, 0])) == len(np.unique(found[:, 1])) == 300


def test_fingerprints_are_lazy() -> None:
    array = mx.ones(5000) + 1
    lazy = fingerprints([array])
    assert (np.array(lazy) == seen(mx.full((5000,), 2.0))).all()


NAMES = ["layers.0.weight", "layers.0.bias", "norm.weight"]


def gathered(*ranks: tuple[int, int, int]) -> Any:
    return np.array([[[value, 7] for value in rank] for rank in ranks], np.uint32)


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([(1, 2, 3), (1, 2, 3)], None),
        ([(1, 2, 3)], None),
        ([(1, 2, 3), (1, 2, 4)], "replicas differ: norm.weight on rank 1"),
        ([(0, 2, 3), (1, 2, 3), (1, 2, 3)], "replicas differ: layers.0.weight on rank 0"),
        (
            [(1, 2, 3), (1, 5, 3), (1, 2, 3), (1, 6, 4)],
            "replicas differ: layers.0.bias on ranks 1 and 3 (and 1 more parameter)",
        ),
        (
            [(1, 2, 3), (1, 2, 3), (4, 5, 6), (4, 5, 6)],
            "replicas differ: layers.0.weight on ranks 2 and 3 (and 2 more parameters)",
        ),
    ],
)
def test_the_first_parameter_and_its_ranks(ranks: list[Any], said: str | None) -> None:
    found = compare(NAMES, gathered(*ranks))
    assert (found and str(found)) == said


def test_what_is_sharded_or_a_statistic_is_not_compared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm(4), AllToShardedLinear(4, 4))
    model.freeze()
    names = [name for name, _ in replicated_parameters(model)]
    assert sorted(names) == sorted(
        ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    )
    assert replicated_parameters(AllToShardedLinear(4, 4)) == []
    assert len(replicated_parameters(nn.BatchNorm(4))) == 2


def test_copying_in_one_process() -> None:
    model, optimizer = nn.Linear(2, 2), optim.Adam(0.1)
    optimizer.init(model.trainable_parameters())
    assert copy_from(0, [model, {"pair": (mx.ones(2), 1)}], None) == 3
    assert copy_from(0, (model, optimizer), None) == 8
    with pytest.raises(UsageError, match="there is no rank 1 to copy from; ranks are 0 to 0"):
        copy_from(1, model, None)
    with pytest.raises(UsageError, match="give the dict that holds it"):
        copy_from(0, (mx.ones(2),), None)
    with pytest.raises(UsageError, match=r"layers\.1 is sharded over the ranks"):
        copy_from(0, nn.Sequential(nn.Linear(2, 2), AllToShardedLinear(2, 2)), None)
