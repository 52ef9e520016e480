"""Finding nodes, and ways between them."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxbench_kernel.graph import Explorer, Graph, capture, diff
from mlxbench_kernel.graph.search import path, search


@pytest.fixture
def graph() -> Graph:
    x, weight = mx.ones((4, 8)), mx.ones((8, 3))
    mx.eval(x, weight)
    fused = mx.compile(lambda a: mx.exp(a) * 2)

    def model(x: mx.array) -> mx.array:
        return mx.sum(fused(mx.softmax(x @ weight, axis=-1)), axis=1)

    return capture(model, x, namespace={"x": x, "weight": weight})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("matmul", ["Matmul"]),
        ("WEIGHT", ["weight"]),
        ("[4,8]", ["x"]),
        ("8x3", ["weight"]),
        ("sum axes=[1]", ["Sum"]),
        ("exp", ["Compiled"]),
        ("[4, 8]", ["x"]),
        ("(4, 8)", ["x"]),
        ("4, 8", ["x"]),
        ("4 x 8", ["x"]),
        ("(4, 8", ["x"]),  # somebody is still typing
        ("float32 (8, 3) weight", ["weight"]),
        ("(4,) squeeze", ["Squeeze"]),
        ("axes=[ 1 ] sum", ["Sum"]),
        ("(4, 8, 1)", []),
        ("(99999999999999999999, 2)", []),
        (",", []),
        ("nothing of the kind", []),
        ("", []),
    ],
)
def test_nodes_are_found_by_their_fields(graph: Graph, text: str, expected: list[str]) -> None:
    assert [graph.label(node) for node in search(graph, text)] == expected


def test_all_words_have_to_be_found(graph: Graph) -> None:
    assert {graph.label(node) for node in search(graph, "float32 4x3")} >= {"Matmul", "Softmax"}
    assert search(graph, "matmul softmax") == []


def test_the_way_between_two_nodes(graph: Graph) -> None:
    (x,), (end,) = search(graph, "[4,8]"), search(graph, "sum")
    found = [graph.label(node) for node in path(graph, end, x)]
    assert found[0] == "x" and found[1:4] == ["Matmul", "Softmax", "Compiled"]
    (weight,) = search(graph, "weight")
    assert path(graph, x, weight) == []
    assert path(graph, x, x) == [x]


def test_scalars_are_found_by_their_empty_shape() -> None:
    graph = capture(mx.ones((3, 3)).sum())
    assert "Squeeze" in {graph.label(node) for node in search(graph, "()")}
    assert search(graph, "()") == search(graph, "[]")


def test_in_a_difference_what_became_of_nodes_is_found() -> None:
    x = mx.ones((3, 3))
    mx.eval(x)
    before = capture(lambda x: mx.tanh(mx.sum(x, axis=0)) @ x, x)
    after = capture(lambda x: mx.exp(mx.sum(x, axis=1)) @ x + 1, x)
    merged, states = diff(before, after).merged()
    explorer = Explorer(merged, states=states)

    def found(text: str) -> set[str]:
        return {merged.label(node) for node in explorer.search(text)}

    assert "Exp" in found("added") and "Tanh" not in found("added")
    assert found("removed") == {"Tanh"}
    assert "Sum" in found("changed")
    # The primitive, not all that was added.
    assert found("add") == {"Add"} and found("add added") == {"Add"}
    # In a graph that nothing is compared with, it is a word like others.
    assert search(after, "added") == []
