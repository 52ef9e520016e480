"""Where NaN and Inf come from, found without evaluating the user's arrays."""

from __future__ import annotations

import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import Scope, Status, read
from mlxbench_kernel.graph.nonfinite import first_nonfinite


def test_the_first_operation_is_named_with_what_it_took() -> None:
    x = mx.array([4.0, 0.0, -1.0, 2.0])
    loss = mx.exp(mx.log(x) * 2).sum()
    graph = read([loss])
    log = graph.primitives.index("Log")
    node = graph.primitive.tolist().index(log)
    scope = np.zeros(graph.nodes, np.int32)
    scope[node] = 1
    graph = graph.with_(scopes=(Scope(""), Scope("layers.3")), scope=scope, names={0: "x"})
    found = first_nonfinite(loss, graph)
    assert found is not None and found.reaches
    assert (found.node, found.primitive, found.path) == (node, "Log", "layers.3")
    assert (found.output.nans, found.output.infs, found.output.size) == (1, 1, 4)
    assert found.output.lowest == pytest.approx(np.log(2))
    assert found.output.highest == pytest.approx(np.log(4))
    assert [(each.name, each.lowest, each.highest) for each in found.inputs] == [("x", -1, 4)]
    assert "\n" not in str(found)
    assert str(found).startswith(
        f"Log in layers.3 (node {node}) gives float32 [4]: 1 NaN and 1 Inf of 4"
    )
    after = read([loss])
    assert after.status[after.outputs[0]] == Status.UNSCHEDULED


def test_a_parameter_that_is_not_finite_is_named() -> None:
    weight, x = mx.array([1.0, float("nan")]), mx.ones(2)
    loss = (x * weight).sum()
    graph = read([loss])
    bad = next(a for a in range(graph.arrays) if graph.id[a] == _id(weight))
    found = first_nonfinite([loss], graph.with_(names={bad: "layers.0.weight"}))
    assert found is not None and found.primitive == ""
    assert str(found).startswith("the input is not finite: layers.0.weight float32 [2]: 1 NaN of 2")


def test_a_mask_of_minus_infinity_is_not_what_made_the_loss_nan() -> None:
    mask = mx.array([0.0, -float("inf")])
    weights = mx.softmax(mx.ones(2) + mask)
    clean = first_nonfinite(weights)
    assert clean is not None and not clean.reaches and "all the same" in str(clean)
    found = first_nonfinite(mx.sqrt(weights - 2).sum())
    assert found is not None and found.primitive == "Sqrt" and found.reaches


def test_a_mask_is_not_blamed_for_nan_that_meets_it() -> None:
    mask = mx.array([0.0, -float("inf")])
    scores = mx.log(mx.array([-1.0, 2.0])) + mask
    found = first_nonfinite([scores, mask + 0])
    assert found is not None and found.primitive == "Log" and found.reaches


def test_names_are_those_of_the_caller() -> None:
    global layer
    layer = nn.Linear(2, 2)
    layer.weight = mx.array([[1.0, 2.0], [float("nan"), 0.0]])
    found = first_nonfinite(layer(mx.ones((1, 2))).sum())
    assert found is not None and found.output.name == "weight"


def test_everything_finite_is_none() -> None:
    assert first_nonfinite(mx.exp(mx.arange(4).astype(mx.bfloat16))) is None


def test_the_graph_of_other_arrays_is_refused() -> None:
    with pytest.raises(UsageError, match="same arrays"):
        first_nonfinite(mx.exp(mx.ones(2)) + 1, read([mx.ones(2)]))


def test_a_tree_of_arrays_can_be_given() -> None:
    y = mx.log(mx.array([-1.0, 2.0]))
    for tree in (y, [y], {"a": y}, {"a": [mx.ones(2), {"b": y}]}):
        found = first_nonfinite(tree)
        assert found is not None and found.primitive == "Log"
    with pytest.raises(UsageError, match="first_nonfinite takes lazy arrays, and this int holds"):
        first_nonfinite(3)


def test_arrays_of_another_thread_are_refused_in_one_line() -> None:
    made: list[mx.array] = []
    thread = threading.Thread(target=lambda: made.append(mx.log(mx.zeros(3))))
    thread.start()
    thread.join()
    with pytest.raises(UsageError, match="another thread") as raised:
        first_nonfinite(made)
    assert "\n" not in str(raised.value)


def test_kinds_of_numbers() -> None:
    """NaN is found in halves, in complex numbers, in scalars; empty arrays hold none."""
    nothing = mx.exp(mx.zeros((0, 3)))
    assert first_nonfinite([nothing, mx.array(1) + 1]) is None
    for dtype in (mx.float16, mx.bfloat16, mx.complex64):
        found = first_nonfinite([nothing, mx.array(float("nan")).astype(dtype) * 2])
        assert found is not None and found.output.nans == 1
        assert found.output.lowest is None


def _id(array: mx.array) -> int:
    return int(read([array]).id[0])


def test_what_takes_long_tells_how_far_it_is() -> None:
    y = mx.ones(3)
    for _ in range(600):
        y = mx.sin(y)
    told: list[tuple[float, str]] = []
    assert first_nonfinite(y, progress=lambda done, text: told.append((done, text))) is None
    assert [text for _, text in told] == ["looking for NaN and Inf"] * len(told)
    assert len(told) > 1 and told[0][0] == 0 and 0 < told[-1][0] < 1
