"""Graphs that begin at given arrays, as if these had been evaluated."""

from __future__ import annotations

import mlx.core as mx

from mlxbench_kernel import native
from mlxbench_kernel.graph import predict, read
from mlxbench_kernel.graph.cutting import cut

SIZE = 4 << 20


def ids(*arrays: mx.array) -> list[int]:
    module = native.load()
    assert module is not None
    return [int(module.array_id(array)) for array in arrays]


def test_what_given_arrays_are_made_from_is_left_out() -> None:
    made = mx.random.normal((1024, 1024)) * 3
    other = mx.random.normal((1024, 1024))
    total = (made @ other).sum()
    (first, second) = ids(made, other)
    graph = cut(read([total]), {first: True, second: True, 12345: True})
    assert sorted(graph.primitive_name(node) for node in range(graph.nodes)) == [
        "", "", "Matmul", "Squeeze", "Sum",
    ]  # fmt: skip
    assert graph.shape(int(graph.outputs[0])) == ()
    assert sorted(map(graph.shape, range(graph.arrays)))[-2:] == [(1024, 1024)] * 2
    assert predict(graph).baseline == 2 * SIZE
    # The whole graph has to make them too.
    assert predict(read([total])).peak > predict(graph).peak


def test_memory_of_given_arrays_is_taken_over_unless_something_holds_it() -> None:
    given = mx.zeros((1024, 1024))
    (number,) = ids(given)
    result = given * 2 + 1
    del given
    graph = read([result])
    assert predict(cut(graph, {number: False})).peak < SIZE // 2
    assert predict(cut(graph, {number: True})).peak >= SIZE


def test_an_output_may_be_given() -> None:
    given = mx.zeros((8, 8))
    (number,) = ids(given)
    graph = cut(read([given, given + 1]), {number: True})
    assert graph.is_input(int(graph.node[graph.outputs[0]]))
    assert predict(graph).peak == 8 * 8 * 4
