"""What is read of a lazy graph, and that reading leaves it as it was."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlxbench_kernel import native
from mlxbench_kernel.graph import Graph, Status, read, reader


def lazy() -> tuple[mx.array, mx.array]:
    x = mx.array(np.arange(32, dtype=np.float32).reshape(4, 8))
    weight = mx.ones((8, 8))
    mx.eval(weight)
    fused = mx.compile(lambda a: mx.exp(a) * 2 + 1)
    first, second = mx.split(fused(mx.softmax(x @ weight.T, axis=-1)).sum(axis=1), 2)
    return first, second


def chain(length: int) -> mx.array:
    total = mx.array(1.0)
    for _ in range(length):
        total = total + 1.0
    return total


def primitives(graph: Graph) -> list[str]:
    return [graph.primitive_name(node) for node in range(graph.nodes) if not graph.is_input(node)]


def test_every_primitive_with_shape_dtype_arguments_and_what_it_needs() -> None:
    graph = read(lazy())
    assert primitives(graph) == [
        "Transpose", "Matmul", "Softmax", "CompiledExpBroadcastMultiplyBroadcastAdd", "Sum",
        "Squeeze", "Split",
    ]  # fmt: skip
    transpose, matmul, _, compiled, total, _, split = (
        node for node in range(graph.nodes) if not graph.is_input(node)
    )
    assert graph.arguments_text(transpose) == "axes=[1, 0]"
    assert graph.arguments_text(total) == "axes=[1]"
    assert graph.arguments_text(split) == "indices=[2], axis=0"
    assert graph.fused[compiled] == ("Exp", "Broadcast", "Multiply", "Broadcast", "Add")
    assert graph.label(compiled) == "Compiled"
    assert [graph.describe(array) for array in graph.inputs_of(matmul)] == [
        "float32 [4, 8]",
        "float32 [8, 8]",
    ]
    assert [graph.describe(array) for array in graph.outputs_of(split)] == ["float32 [2]"] * 2
    assert graph.outputs.tolist() == list(graph.outputs_of(split))
    assert list(graph.users_of(graph.outputs_of(matmul)[0])) == [matmul + 1]
    assert all(graph.sources < graph.targets)


def test_what_is_evaluated_is_told() -> None:
    graph = read(lazy())
    ready = [array for array in range(graph.arrays) if graph.status[array] != Status.UNSCHEDULED]
    assert {graph.describe(array) for array in ready} == {
        "float32 [4, 8]",
        "float32 [8, 8]",
        "float32 []",
    }
    assert all(graph.buffer_bytes[array] >= graph.nbytes[array] for array in ready)
    assert all(graph.is_input(graph.node[array]) for array in ready)


def test_reading_evaluates_nothing_and_changes_nothing() -> None:
    outputs = lazy()
    before = mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory()
    one, other = read(outputs), read(outputs)
    assert (mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory()) == before
    for name in ("primitive", "inputs", "id", "status", "held", "outputs"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert np.allclose(outputs[0], 8 * 2 * np.exp(1 / 8) + 8)


def test_arrays_that_python_holds_are_told_from_those_in_between() -> None:
    x = mx.array([1.0, 2.0])
    between = mx.exp(x)
    end = mx.sin(between)
    held = read([end]).held.tolist()
    assert held == [1, 1, 1]
    del between
    assert read([end]).held.tolist() == [1, 0, 1]


def test_what_operations_with_several_results_take_is_not_held() -> None:
    x = mx.array([1.0, 2.0])
    between = mx.exp(x)
    parts = mx.split(between, 2)
    assert read(parts).held.tolist() == [1, 1, 1, 1]
    del between
    assert read(parts).held.tolist() == [1, 0, 1, 1]


def test_a_collective_is_called_as_the_user_calls_it() -> None:
    group = mx.distributed.init()
    assert group.size() == 1
    graph = read([mx.distributed.all_sum(mx.ones(3), group=group)])
    assert all(graph.collective(node) == "" for node in range(graph.nodes))  # alone there is none


def test_a_chain_of_a_million_nodes() -> None:
    # In a process of its own, which recursion would end, and which takes its memory with it.
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from unit.test_graph_reader import chain, read\n"
        "print(read([chain(1_000_000)]).nodes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2000001\n", done.stderr


def test_without_the_native_module_names_and_edges_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs = lazy()
    expected = read(outputs)
    monkeypatch.setattr(native, "load", lambda: None)
    graph = reader.read(outputs)
    assert not graph.complete and graph.describe(0) == ""
    assert sorted(primitives(graph)) == sorted(primitives(expected))
    assert graph.edges == expected.edges and len(graph.outputs) == 2
    assert all(graph.sources < graph.targets)
