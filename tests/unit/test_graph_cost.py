"""Operations and bytes, against numbers counted by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from graph_models import llama
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import Explorer, cost, read
from mlxbench_kernel.graph.operations import MOVES, RULES

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
    "quotient": (lambda: ones(4, 6) // ones(4, 6), 24),
    "cumulative": (lambda: mx.logcumsumexp(ones(4, 6), axis=1), 24),
    "rows added up": (lambda: ones(100, 8).at[mx.array([1, 5, 1])].add(ones(3, 8)), 3 * 8),
    "complex product": (lambda: ones(3, 5).astype(mx.complex64) @ ones(5, 7), 8 * 3 * 5 * 7),
    "complex, element by element": (
        lambda: ones(4, 6).astype(mx.complex64) * ones(4, 6).astype(mx.complex64), 6 * 24,
    ),
    "half precision": (lambda: ones(3, 5).astype(mx.bfloat16) @ ones(5, 7).astype(mx.bfloat16),
                       2 * 3 * 5 * 7),
    "picked matrices": (
        lambda: mx.gather_mm(ones(4, 3, 5), ones(9, 5, 7), rhs_indices=mx.array([1, 2, 1, 0])),
        2 * 4 * 3 * 5 * 7,
    ),
    "quantized product": (lambda: quantized(ones(3, 64)), 2 * 3 * 64 * 32),
    "vmapped product": (
        lambda: mx.vmap(lambda a, b: a @ b)(ones(4, 3, 5), ones(4, 5, 7)), 2 * 4 * 3 * 5 * 7,
    ),
    "quantizing": (lambda: mx.quantize(ones(32, 64))[0], 5 * 32 * 64),
    "cholesky": (lambda: mx.linalg.cholesky(ones(2, 30, 30), stream=mx.cpu), 2 * 30**3 // 3),
    "inverse": (lambda: mx.linalg.inv(ones(30, 30), stream=mx.cpu), 2 * 30**3),
    "qr": (lambda: mx.linalg.qr(ones(30, 30), stream=mx.cpu)[1], 8 * 30**3 // 3),
    "svd": (lambda: mx.linalg.svd(ones(30, 30), stream=mx.cpu)[1], 21 * 30**3),
    "singular values": (
        lambda: mx.linalg.svd(ones(30, 30), compute_uv=False, stream=mx.cpu), 8 * 30**3 // 3,
    ),
    "eigenvectors": (lambda: mx.linalg.eigh(ones(30, 30), stream=mx.cpu)[0], 9 * 30**3),
    "lu": (lambda: mx.linalg.lu_factor(ones(30, 30), stream=mx.cpu)[0], 2 * 30**3 // 3),
    "nothing": (lambda: mx.exp(ones(0, 4)), 0),
    "scalar": (lambda: mx.exp(ones()), 1),
}  # fmt: skip


def quantized(x: mx.array) -> mx.array:
    weights = mx.quantize(ones(32, 64), group_size=32)
    mx.eval(weights)
    return mx.quantized_matmul(x, *weights, group_size=32)


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


def test_an_embedding_reads_its_rows_and_not_its_table() -> None:
    table, tokens = ones(50_000, 64), mx.array([3, 1, 4, 1])
    found = cost(read([table[tokens]]))
    assert found.totals["read"] == 4 * 64 * F32 + 4 * 4
    assert found.totals["written"] == 4 * 64 * F32
    along = cost(read([mx.take_along_axis(table, mx.zeros((1, 64), mx.int32), axis=0)]))
    gathered = along.totals["read"] - 64 * 4
    assert gathered <= 64 * F32 + 8


def moved(y: mx.array) -> tuple[int, int]:
    totals = cost(read([y])).totals
    return totals["read"], totals["written"]


def test_what_is_written_into_an_array_moves_the_updates() -> None:
    """The array is copied only where it is needed as it was."""
    updates, index, big = ones(3, 8), mx.array([1, 5, 1]), 1000 * 8 * F32
    kept = ones(1000, 8)
    put = 3 * 8 * F32
    assert moved(kept.at[index].add(updates)) == (big + 2 * put + 3 * 4, big + put)
    added = mx.exp(kept).at[index].add(updates)  # what exp has made nobody needs any more
    assert moved(added) == (big + 2 * put + 3 * 4, big + put)
    cache = mx.exp(kept)
    cache[2:5] = updates
    assert moved(cache) == (big + put, big + put)


def test_a_reshape_moves_only_what_does_not_lie_right() -> None:
    x = ones(64, 32)
    assert moved(x.reshape(32, 64)) == moved(x.T) == moved(mx.contiguous(x)) == (0, 0)
    assert moved(x.T.reshape(-1)) == moved(mx.contiguous(x.T)) == (x.nbytes, x.nbytes)
    assert moved(mx.exp(x.T).reshape(-1)) == (2 * x.nbytes, 2 * x.nbytes)


def test_views_are_as_large_as_what_is_seen_of_them() -> None:
    x = ones(64, 32)
    assert moved(mx.exp(x[:4])) == (4 * 32 * F32, 4 * 32 * F32)
    assert moved(mx.exp(mx.split(x, 4)[1])) == (16 * 32 * F32, 16 * 32 * F32)
    assert moved(mx.concatenate([x, ones(2, 32)])) == (66 * 32 * F32, 66 * 32 * F32)
    windows = mx.as_strided(x, (32, 33, 32), (32, 32, 1))
    assert moved(windows.sum(axis=1))[0] == x.nbytes
    depending = mx.depends([mx.exp(x)], [mx.sin(ones(2, 2))])[0]
    assert moved(depending * 2)[0] == 2 * x.nbytes + 2 * 2 * F32 + F32
    assert moved(x.view(mx.int32)) == (0, 0)


def test_picked_matrices_are_read_as_often_as_they_are_picked() -> None:
    experts, x = ones(64, 32, 32), ones(2, 4, 32)
    graph = read([mx.gather_mm(x, experts, rhs_indices=mx.array([3, 5]))])
    product = next(node for node in range(graph.nodes) if graph.label(node) == "GatherMM")
    found = cost(graph)
    picked, indices = 2 * 32 * 32 * F32, 2 * 2 * 4
    assert found.read[product] == picked + x.nbytes + indices
    assert found.written[product] == x.nbytes


def primitives_of_mlx() -> set[str]:
    """The names of all primitives of the installed MLX, from its headers."""
    folder = Path(str(mx.__file__)).parent / "include" / "mlx"
    found: set[str] = set()
    for name in ("primitives.h", "fast_primitives.h"):
        text = (folder / name).read_text()
        found |= set(re.findall(r"DEFINE_NAME\((\w+)\)", text))
        found |= set(re.findall(r'return "([A-Z][\w ]+)";', text))
    return found - {"PRIMITIVE"}


def test_every_primitive_of_mlx_has_a_rule_or_is_said_to_have_none() -> None:
    names = primitives_of_mlx()
    assert {"Matmul", "Scatter Sum", "Rsqrt", "CrossEntropy"} <= names
    counted = {name for name in names if name in RULES or name.partition(" ")[0] in MOVES}
    assert names - counted == {"CustomKernel", "GatedDeltaUpdate", "GatedDeltaUpdateVJP"}
    # and no rule is for a name that MLX does not have: View's is made of the dtype
    assert (set(RULES) | MOVES) - names == {"View"}


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


def test_what_has_no_rule_is_named_where_it_is_shown() -> None:
    graph = read([mx.exp(ones(2, 2)) @ ones(2, 2)])
    odd = graph.with_(primitives=tuple(n if n != "Exp" else "MyKernel" for n in graph.primitives))
    found = cost(odd)
    assert found.unknown == ("MyKernel",)
    assert str(found) == "16 FLOP, 80 B moved (0.2 FLOP/byte); no FLOPs known of: MyKernel"
    assert "no FLOPs" not in str(cost(graph))
    explorer = Explorer(odd)
    assert "16 FLOP (no FLOPs known of: MyKernel)" in explorer.summary
    kernel = next(node for node in range(odd.nodes) if odd.label(node) == "MyKernel")
    product = next(node for node in range(odd.nodes) if odd.label(node) == "Matmul")
    assert dict(explorer.details(kernel))["FLOPs"] == "no FLOPs known of: MyKernel"
    assert dict(explorer.details(product))["FLOPs"] == "16"


def test_what_cannot_be_costed_is_said_with_what_to_give() -> None:
    graph = read([mx.exp(ones(2, 2))])
    with pytest.raises(UsageError, match="has no shapes"):
        cost(graph.with_(complete=False))
    with pytest.raises(UsageError, match=r"cost takes a graph, not an array: give capture\(y\)"):
        cost(mx.exp(ones(2, 2)))  # type: ignore[arg-type]
