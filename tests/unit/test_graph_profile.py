"""Times of operations, measured while the user's arrays stay lazy."""

from __future__ import annotations

import threading
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import Graph, Scope, Status, read
from mlxbench_kernel.graph.profile import APART, profile, side_by_side


def lazy() -> list[mx.array]:
    x = mx.random.normal((64, 64), key=mx.random.key(1))
    weight = mx.ones((64, 64))
    mx.eval(weight)
    fused = mx.compile(lambda a: mx.exp(a) * 2 + 1)
    first, second = mx.split(fused(mx.softmax(x @ weight, axis=-1)), 2)
    return [first, second.sum()]


def assert_same(one: Graph, other: Graph) -> None:
    for name in ("primitive", "inputs", "id", "status", "held", "outputs", "buffer"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_each_operation_has_a_time_and_the_arrays_stay_lazy() -> None:
    outputs = lazy()
    before = read(outputs)
    measured = profile(outputs, repeat=3)
    assert_same(before, read(outputs))
    assert all(before.status[before.outputs] == Status.UNSCHEDULED)
    inputs = np.array([before.is_input(node) for node in range(before.nodes)])
    assert measured.seconds.shape == (before.nodes,)
    assert np.all((measured.seconds > 0) == ~inputs)
    assert measured.total == pytest.approx(sum(measured.by_primitive().values()))
    assert measured.whole > 0 and "the whole" in str(measured) and "Matmul" in str(measured)


def test_inputs_are_never_written_into() -> None:
    x = mx.array(np.arange(1024, dtype=np.float32))
    y = mx.exp(mx.negative(x))
    z = y + mx.sqrt(y) * y
    profile([z, y], repeat=2)
    assert np.array_equal(x, np.arange(1024, dtype=np.float32))
    assert np.allclose(z, np.exp(-np.arange(1024.0)) * (1 + np.exp(-np.arange(1024.0) / 2)))


def test_values_of_the_copy_are_those_of_the_original() -> None:
    outputs = lazy()
    replay = native.load().Replay(outputs, True, False)  # type: ignore[union-attr]
    copies: list[mx.array] = []
    for _ in range(replay.nodes):
        replay.step()
        copies += replay.values()
    graph = read(outputs)
    assert [copy.shape for copy in copies] == [graph.shape(a) for a in range(graph.arrays)]
    for output, number in zip(outputs, graph.outputs, strict=True):
        assert np.array_equal(copies[number], output)


def test_memory_stays_bounded() -> None:
    y = mx.zeros((1024, 256))
    for _ in range(200):
        y = mx.sin(y)
    mx.reset_peak_memory()
    start = mx.get_active_memory()
    profile([y], repeat=1)
    assert mx.get_peak_memory() - start < 4 * y.nbytes


def test_times_by_module_hold_those_of_the_modules_inside() -> None:
    outputs = lazy()
    graph = read(outputs)
    scope = np.arange(graph.nodes, dtype=np.int32) % 3
    scoped = graph.with_(scopes=(Scope(""), Scope("layers.0"), Scope("layers.0.mlp")), scope=scope)
    measured = profile(outputs, repeat=1)
    seconds = measured.by_scope(scoped)
    assert seconds[""] == pytest.approx(measured.total)
    assert seconds["layers.0"] == pytest.approx(measured.seconds[scope > 0].sum())
    assert seconds["layers.0.mlp"] == pytest.approx(measured.seconds[scope == 2].sum())
    with pytest.raises(UsageError, match="give the graph"):
        measured.by_scope(read([mx.ones(3)]))


def test_bad_input_is_told_in_one_line() -> None:
    with pytest.raises(UsageError, match="repeat=1 or more"):
        profile(lazy(), repeat=0)
    with pytest.raises(UsageError, match="at least one"):
        profile([])


def test_one_array_or_a_tree_of_them_can_be_given() -> None:
    y = mx.exp(mx.ones((64, 64)))
    assert profile(y, repeat=1).by_primitive()["Exp"] > 0
    assert profile({"loss": y, "more": [mx.sin(y)]}, repeat=1).by_primitive()["Sin"] > 0
    for wrong in (3, {}, read([y])):
        kind = type(wrong).__name__
        with pytest.raises(UsageError, match=f"profile takes lazy arrays, and this {kind} holds"):
            profile(wrong)


def elsewhere() -> mx.array:
    """An array of a thread that has ended."""
    made: list[mx.array] = []
    thread = threading.Thread(target=lambda: made.append(mx.exp(mx.ones(3))))
    thread.start()
    thread.join()
    return made[0]


def test_arrays_of_another_thread_are_refused_in_one_line() -> None:
    y = elsewhere()
    with pytest.raises(UsageError, match=r"^these arrays were made on another thread, .* anew"):
        profile(y)
    assert read([y]).status[-1] == Status.UNSCHEDULED


def test_ranks_side_by_side_say_that_operations_were_measured_apart() -> None:
    one, other = profile(lazy(), repeat=2), profile(lazy(), repeat=2)
    said = side_by_side({0: one, 1: other})
    assert said.startswith("Operations were evaluated apart (medians of 2). Apart, each operation")
    assert APART in said and APART in str(one)
    assert "collectives" not in said
    with_sum = one.graph.with_(
        primitives=tuple("Sum AllReduce" if n == "Sum" else n for n in one.graph.primitives)
    )
    waiting = side_by_side({0: replace(one, graph=with_sum), 1: other})
    assert waiting.count("waiting for ranks that come later") == 1


def test_long_times_are_written_without_an_exponent() -> None:
    measured = profile(lazy(), repeat=1)
    slow = replace(measured, seconds=measured.seconds / measured.total * 1.5, whole=1.25)
    assert str(slow).startswith("1.5 s, the sum of operations evaluated apart, 1.2 × the 1.25 s of")


def test_what_is_drawn_at_random_is_drawn_again_alike() -> None:
    mx.random.seed(5)
    drawn = mx.random.normal((64, 64)) @ mx.random.uniform(shape=(64, 64))
    assert profile([drawn], repeat=2).by_primitive()["RandomBits"] > 0
    later = mx.random.normal((4,))
    mx.random.seed(5)
    assert np.array_equal(drawn, mx.random.normal((64, 64)) @ mx.random.uniform(shape=(64, 64)))
    assert np.array_equal(later, mx.random.normal((4,)))


def test_a_compiled_node_with_two_results_is_one_operation() -> None:
    def both(a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
        product = mx.exp(a) * b
        return product, mx.sin(product) - b

    one, two = mx.compile(both)(mx.ones((64, 64)), mx.ones((64, 64)) * 2)
    measured = profile([two], repeat=1)  # the other one is taken by nobody
    (fused,) = measured.graph.fused
    assert len(measured.graph.outputs_of(fused)) == 2 and measured.seconds[fused] > 0
    assert one[0, 0].item() == pytest.approx(2 * np.e)
    assert two[0, 0].item() == pytest.approx(np.sin(2 * np.e) - 2, abs=1e-5)


def test_memory_of_many_operations_stays_near_that_of_evaluating_them() -> None:
    x = mx.ones((64, 64))
    mx.eval(x)

    def many() -> mx.array:
        y = x
        for _ in range(10_000):
            y = mx.sin(y) + y
        return y

    peaks = []
    for evaluate in (mx.eval, lambda y: profile([y], repeat=1, warm_up=0)):
        y = many()
        mx.reset_peak_memory()
        start = mx.get_active_memory()
        evaluate(y)
        peaks.append(mx.get_peak_memory() - start)
        del y
    assert peaks[1] <= peaks[0] + 4 * x.nbytes


def test_inputs_that_are_being_computed_are_waited_for() -> None:
    x = mx.ones((256, 256)) @ mx.ones((256, 256))
    mx.async_eval(x)
    measured = profile([x + 1, x], repeat=1)
    assert "Matmul" not in measured.by_primitive() and "Add" in measured.by_primitive()


def test_what_is_evaluated_already_is_refused() -> None:
    x = mx.ones(3) + 1
    mx.eval(x)
    with pytest.raises(UsageError, match="evaluated already"):
        profile([x])


def test_a_captured_graph_brings_its_scopes_along() -> None:
    outputs = lazy()
    graph = read(outputs)
    graph = graph.with_(scopes=(Scope("layers.0"),))
    assert profile(outputs, repeat=1, graph=graph).by_scope()["layers.0"] > 0
    with pytest.raises(UsageError, match="same arrays"):
        profile(outputs, graph=read(lazy()))
