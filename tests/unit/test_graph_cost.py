"""Operations and bytes, against numbers counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from graph_models import llama
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import cost, read

F32 = 4
CASES: dict[str, tuple[Callable[[], mx.array], int]] = {
    "product": (lambda: ones(3, 5) @ ones(5, 7), 2 * 3 * 5 * 7),
    "batched product": (lambda: ones(2, 3, 5) @ ones(2, 5, 7), 2 * 2 * 3 * 5 * 7),
    "product and sum": (
        lambda: mx.addmm(ones(3, 7), ones(3, 5), ones(5, 7)),
        2 * 3 * 5 * 7 + 2 * 3 * 7,
    ),
    "elementwise": (lambda: ones(4, 6) + ones(4, 6), 24),
    "transcendental": (lambda: mx.exp(ones(4, 6)), 24),
    "reduction": (lambda: mx.sum(ones(4, 6), axis=1), 24),
    "convolution": (
        lambda: mx.conv2d(ones(1, 8, 8, 3), ones(5, 3, 3, 3), padding=1),
        2 * 8 * 8 * 5 * 3 * 3 * 3,
    ),
    "convolution in groups": (
        lambda: mx.conv2d(ones(1, 8, 8, 4), ones(6, 3, 3, 2), padding=1, groups=2),
        2 * 8 * 8 * 6 * 3 * 3 * 2,
    ),
    "view": (lambda: ones(4, 6).T, 0),
    "sort": (lambda: mx.sort(ones(4, 8), axis=1), 4 * 8 * 3),
    "fused": (lambda: mx.compile(lambda a: mx.exp(a) * a + a)(ones(4, 6)), 3 * 24),
}


def ones(*shape: int) -> mx.array:
    array = mx.ones(shape)
    mx.eval(array)
    return array


@pytest.mark.parametrize("name", CASES)
def test_operations_are_counted(name: str) -> None:
    make, expected = CASES[name]
    found = cost(read([make()]))
    assert found.totals["flops"] == expected
    assert found.unknown == ()


def test_bytes_are_those_that_move() -> None:
    found = cost(read([ones(4, 6) + ones(4, 6)]))
    assert found.totals["read"] == 2 * 24 * F32 and found.totals["written"] == 24 * F32
    seen = cost(read([ones(4, 6).T.reshape(2, 12)[0]]))
    assert seen.totals["flops"] == 0
    spread = cost(read([mx.broadcast_to(ones(1, 6), (1000, 6)) + ones(1000, 6)]))
    assert spread.totals["read"] == (6 + 6000) * F32


def test_a_llama_takes_two_operations_per_parameter_and_token() -> None:
    case = llama()
    graph = read(case.outputs("forward"))
    weights = tree_flatten(case.model.parameters())
    dense = sum(w.size for name, w in weights if w.ndim == 2 and "embed" not in name)
    flops = cost(graph).totals["flops"]
    assert 2 * dense * case.x.size <= flops <= 2.4 * dense * case.x.size
    backward = cost(read(case.outputs("backward"))).totals["flops"]
    assert 2.7 * flops < backward < 3.4 * flops


def test_sums_over_groups() -> None:
    graph = read([mx.exp(ones(4, 6)) @ ones(6, 2)])
    found = cost(graph)
    groups = (np.arange(graph.nodes) % 2).astype(np.int64)
    summed = found.by(groups, 2)
    assert summed.flops.sum() == found.flops.sum() and len(summed.flops) == 2
    assert summed.flops[0] == found.flops[::2].sum()


def test_what_has_no_rule_is_named_and_shapes_are_needed() -> None:
    graph = read([mx.exp(ones(2, 2))])
    assert cost(graph.with_(primitives=("", "MyKernel"))).unknown == ("MyKernel",)
    with pytest.raises(UsageError, match="has no shapes"):
        cost(graph.with_(complete=False))
