"""What is different between two graphs, and graphs that go to files and back."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from graph_models import small_llama, training_graph

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.graph import (
    Graph,
    agreement,
    capture,
    diff,
    load,
    read,
    save,
    to_dot,
    to_text,
)  # fmt: skip
from mlxbench_kernel.graph.collective_order import first_collective_difference


def layer(x: mx.array, last: str = "sum") -> mx.array:
    return getattr(mx, last)(mx.softmax(x @ mx.ones((8, 4)), axis=-1), axis=1)


def collective(graph: Graph, old: str, new: str) -> Graph:
    """The graph with another primitive; alone, MLX makes no collectives."""
    return graph.with_(primitives=tuple(new if name == old else name for name in graph.primitives))


def test_equal_graphs_are_equal_whatever_their_ids() -> None:
    one, other = capture(layer, mx.ones((2, 8))), capture(layer, mx.ones((2, 8)))
    found = diff(one, other)
    assert found.equal and found.summary == "equal"
    assert len(found.pairs) == one.nodes


def test_another_shape_is_a_change_of_shape() -> None:
    found = diff(capture(layer, mx.ones((2, 8))), capture(layer, mx.ones((3, 8))))
    assert not found.equal and not len(found.added) and not len(found.removed)
    assert "shape" in found.summary
    assert "float32 [2, 4]" in found.text() and "float32 [3, 4]" in found.text()


def test_another_operation_is_added_and_removed() -> None:
    x = mx.ones((2, 8))
    found = diff(capture(layer, x), capture(layer, x, last="max"))
    a, b = (capture(layer, x), capture(layer, x, last="max"))
    changed = {a.label(int(n)) for n in found.removed} | {b.label(int(n)) for n in found.added}
    assert {"Sum", "Max"} <= changed
    merged, states = found.merged()
    assert merged.nodes == a.nodes + len(found.added) == len(states)
    assert (states != 0).sum() == len(found.added) + len(found.removed) + len(found.changed)


def ready(*shape: int) -> mx.array:
    array = mx.ones(shape)
    mx.eval(array)
    return array


def test_arguments_in_another_order_are_a_change() -> None:
    x, y = ready(2, 8), ready(2, 8)
    for one, other in (
        (lambda a, b: a - b, lambda a, b: b - a),
        (lambda a, b: mx.where(a > b, a, b), lambda a, b: mx.where(a > b, b, a)),
        (lambda a, b: mx.concatenate([a, b]), lambda a, b: mx.concatenate([b, a])),
    ):
        found = diff(capture(one, x, y), capture(other, x, y))
        assert not found.equal and found.summary == "1 changed (inputs)"
        assert diff(capture(one, x, y), capture(one, y, x)).equal  # the same names, other ids
    said = diff(capture(lambda a, b: a - b, x, y), capture(lambda a, b: b - a, x, y)).text()
    assert said.endswith("[takes b, a instead of a, b]")


class Scores(nn.Module):
    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.swapped = swapped
        mx.eval(self.parameters())

    def __call__(self, x: mx.array) -> mx.array:
        q, k = self.q(x), self.k(x)
        return k @ q.T if self.swapped else q @ k.T


def test_an_attention_with_q_and_k_swapped_is_changed_where_they_meet() -> None:
    x = ready(2, 8)
    a, b = capture(Scores(), x), capture(Scores(swapped=True), x)
    found = diff(a, b)
    assert found.summary == "2 changed (inputs)"
    assert "in q" in found.text() and "instead of Matmul" in found.text()
    assert {b.scopes[b.scope[change.after]].path for change in found.changed} == {""}
    assert diff(a, capture(Scores(), x)).equal
    wider = diff(a, capture(Scores(), ready(3, 8)))
    assert "inputs" not in wider.summary and not len(wider.added)


def test_another_input_in_its_place_is_named() -> None:
    x, y, z = ready(2, 8), ready(2, 8), ready(2, 8)
    names = {"x": x, "y": y, "z": z}
    found = diff(capture(mx.sin(x) - y, namespace=names), capture(mx.sin(x) - z, namespace=names))
    assert found.summary == "1 changed (name)"
    assert "= z float32 [2, 8]  [was y]" in found.text()
    # Without names there is nothing but structure to go by.
    assert diff(capture(mx.sin(x) - y), capture(mx.sin(x) - z)).equal
    assert diff(capture(mx.sin(x) - y), capture(mx.sin(x) - z, namespace=names)).equal


def test_a_model_in_another_variable_is_the_same_model() -> None:
    x, one, other = ready(2, 8), Scores(), Scores()
    names = {"one": one, "other": other, "x": x}
    a = capture(lambda x: one(x), x, namespace=names)
    b = capture(lambda x: other(x), x, namespace=names)
    assert "one.q.weight" in a.names.values() and "other.q.weight" in b.names.values()
    assert diff(a, b).equal


def test_compiled_with_names_is_no_other_than_without() -> None:
    x, y = ready(3), ready(3)

    def function(x: mx.array, y: mx.array) -> mx.array:
        return mx.exp(x) * 2 - y

    compiled = mx.compile(function)
    found = diff(capture(compiled, x, y, compiled=False), capture(compiled, x, y))
    assert not found.changed and len(found.added) == 1


def test_a_layer_more_leaves_the_others_as_they_were() -> None:
    a, b = training_graph(small_llama(4)), training_graph(small_llama(5))
    found = diff(a, b)
    assert len(found.added) == b.nodes - a.nodes and not len(found.removed)
    # What stood before the layer and what stands after it now take what it gives, and few others.
    assert len(found.changed) < 10


def test_what_is_no_graph_is_refused() -> None:
    x = ready(3)
    with pytest.raises(UsageError, match="diff takes a graph, not an array"):
        diff(capture(mx.sin(x)), mx.sin(x))  # type: ignore[arg-type]


def test_what_mx_compile_has_fused() -> None:
    function = mx.compile(lambda a: mx.exp(a) * 2 + 1)
    x = mx.ones(3)
    mx.eval(x)
    found = diff(capture(function, x, compiled=False), capture(function, x))
    assert not found.equal
    assert "Compiled" in found.text() and "Exp" in found.text()


def test_a_layer_more_is_seen() -> None:
    found = diff(training_graph(small_llama(2)), training_graph(small_llama(3)))
    assert not found.equal and len(found.added) > 100 and len(found.removed) < 20


def test_ranks_that_would_wait_for_one_another() -> None:
    def step(x: mx.array) -> mx.array:
        return mx.sin(mx.cos(x) * 2)

    graph = capture(step, mx.ones(4))
    same = collective(collective(graph, "Sin", "Sum AllReduce"), "Cos", "AllGather")
    other = collective(collective(graph, "Cos", "Sum AllReduce"), "Sin", "AllGather")
    wider = capture(step, mx.ones(5))
    wider = collective(collective(wider, "Sin", "Sum AllReduce"), "Cos", "AllGather")
    assert first_collective_difference(same, same) is None
    found = first_collective_difference(same, other, ("rank 0", "rank 1"))
    assert found is not None and found.index == 0
    assert "rank 0: all_gather" in found.text and "rank 1: all_sum" in found.text
    assert agreement({0: same, 1: same}) == (
        f"ranks 0, 1 agree: {same.nodes} nodes, 2 collectives", None,
    )  # fmt: skip
    said, merged = agreement({0: same, 1: wider})
    assert "float32 [4]" in said and "float32 [5]" in said and merged is not None
    assert merged[1].sum() > 0
    fewer = collective(graph, "Cos", "AllGather")
    said, _ = agreement({0: fewer, 3: same})
    expected = "collective 2 differs: rank 0: none; rank 3: all_sum of float32 [4]"
    assert said == f"the ranks do not agree: {expected}"


def test_text_and_dot() -> None:
    graph = capture(layer, mx.ones((2, 8)))
    lines = to_text(graph).splitlines()
    assert any("= Matmul(" in line and "float32 [2, 4]" in line for line in lines)
    assert len(lines) >= graph.nodes
    dot = to_dot(training_graph(small_llama(1)))
    assert dot.startswith("digraph") and "subgraph" in dot and dot.rstrip().endswith("}")


def test_a_graph_goes_to_a_file_and_back(tmp_path: Path) -> None:
    graph = training_graph(small_llama(1))
    save(graph, tmp_path / "g.json")
    back = load(tmp_path / "g.json")
    assert back.scopes == graph.scopes and dict(back.names) == dict(graph.names)
    for name in ("primitive", "inputs", "extents", "phase", "outputs"):
        assert np.array_equal(getattr(back, name), getattr(graph, name))
    assert diff(back, graph).equal


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    save(read([mx.exp(mx.ones(3))]), path)
    whole = json.loads(path.read_text())
    for text, said in [
        ("{", "no JSON, or only a part"),
        ("[1]", "holds no graph"),
        (json.dumps({**whole, "version": 99}), "pip install --upgrade"),
        (json.dumps({**whole, "arrays": {}}), "is missing"),
        (json.dumps({**whole, "arrays": {**whole["arrays"], "inputs": "xx"}}), "g.json"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=said) as raised:
            load(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "missing.json")
    with pytest.raises(StorageError, match="does not exist"):
        save(read([mx.exp(mx.ones(3))]), tmp_path / "no" / "g.json")


def test_two_versions_of_a_layer() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    x = mx.ones((2, 4))
    found = diff(capture(one, x), capture(other, x))
    assert not found.equal and "removed" in found.summary
