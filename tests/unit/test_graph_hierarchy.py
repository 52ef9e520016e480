"""Groups of a graph, and where everything stands in a view."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from graph_models import small_llama, training_graph

from mlxbench_kernel.graph import Explorer, Graph, Phase, capture, read
from mlxbench_kernel.graph.hierarchy import Hierarchy
from mlxbench_kernel.graph.layout import lay_out
from mlxbench_kernel.graph.picture import svg
from mlxbench_kernel.graph.scene import Kind, Scene


@pytest.fixture(scope="module")
def graph() -> Graph:
    return training_graph(small_llama())


def long_chain(length: int) -> Graph:
    x = mx.array(1.0)
    for _ in range(length):
        x = mx.sin(x)
    return read([x])


def opened(graph: Graph, number: int) -> tuple[Hierarchy, set[int]]:
    """Nothing, what is open at first, half of the groups, or all."""
    hierarchy = Hierarchy(graph)
    everything = list(range(len(hierarchy)))
    return hierarchy, [{0}, hierarchy.start(), set(everything[::2]), set(everything)][number]


def test_modules_contain_modules_and_blocks_are_folded(graph: Graph) -> None:
    hierarchy = Hierarchy(graph)
    assert "4 × TransformerBlock" in hierarchy.title
    assert {"optimizer", "model"} <= {hierarchy.title[g] for g in hierarchy.children(0)}
    fold = hierarchy.title.index("4 × TransformerBlock")
    blocks = hierarchy.children(fold)
    assert [hierarchy.path[block] for block in blocks] == [f"model.layers.{i}" for i in range(4)]
    forward = (graph.phase == Phase.FORWARD) & (graph.primitive != 0)
    assert len({int(forward[hierarchy.nodes_in(block)].sum()) for block in blocks}) == 1
    assert hierarchy.count[0] == graph.nodes
    node = int(hierarchy.nodes_in(blocks[1])[0])
    assert {0, fold, blocks[1]} <= set(hierarchy.around(node))


def test_a_long_graph_without_modules_begins_with_a_screenful() -> None:
    graph = long_chain(200_000)
    hierarchy = Hierarchy(graph)
    scene = lay_out(graph, hierarchy, hierarchy.start())
    assert scene.boxes < 500
    assert hierarchy.count[0] == graph.nodes


class Deep(nn.Module):
    """A long list of layers, equal ones or not, with operations of its own between them."""

    def __init__(self, equal: bool) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8 if equal else 8 + number % 2) for number in range(300)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = mx.tanh(layer(x)[:, :8]) + x
        return x


@pytest.mark.parametrize("equal", [True, False])
def test_layers_stay_layers_however_many_there_are(equal: bool) -> None:
    model, x = Deep(equal), mx.ones((2, 8))
    mx.eval(model.parameters(), x)
    explorer = Explorer(capture(model, x, namespace={"model": model}))
    hierarchy = explorer.hierarchy
    inside = hierarchy.children(0)
    if equal:
        (fold,) = (group for group in inside if hierarchy.title[group] == "300 × Linear")
        inside = hierarchy.children(fold)
    assert [hierarchy.kind[group] for group in inside].count("Linear") == 300
    # The operations between them, two or three for each, are what is cut.
    ranges = [group for group in hierarchy.children(0) if hierarchy.kind[group] == "range"]
    assert hierarchy.count[ranges].sum() >= 600 and max(hierarchy.count[ranges]) <= 100
    assert explorer.scene().boxes < 400


@pytest.mark.parametrize("number", range(4))
def test_boxes_do_not_overlap_and_stand_in_their_frames(graph: Graph, number: int) -> None:
    hierarchy, groups = opened(graph, number)
    scene = lay_out(graph, hierarchy, groups)
    right, bottom = scene.x + scene.width, scene.y + scene.height
    for frame in np.unique(scene.frame):
        inside = np.flatnonzero(scene.frame == frame)
        if frame >= 0:
            assert scene.kind[frame] == Kind.FRAME and frame < inside.min()
            assert (scene.x[inside] >= scene.x[frame]).all()
            assert (scene.y[inside] >= scene.y[frame]).all()
            assert (right[inside] <= right[frame] + 1e-2).all()
            assert (bottom[inside] <= bottom[frame] + 1e-2).all()
        order = inside[np.argsort(scene.y[inside])]
        for position, one in enumerate(order):
            for other in order[position + 1 :]:
                if scene.y[other] >= bottom[one] - 1e-2:
                    break
                apart = scene.x[other] >= right[one] - 1e-2 or scene.x[one] >= right[other] - 1e-2
                assert apart, (scene.title[one], scene.title[other])


@pytest.mark.parametrize("number", range(4))
def test_lines_run_downwards_or_are_stubs(graph: Graph, number: int) -> None:
    hierarchy, groups = opened(graph, number)
    scene = lay_out(graph, hierarchy, groups)
    down = scene.y[scene.source] < scene.y[scene.target]
    assert (down | (scene.stub == 1)).all()
    assert len(scene.source) > 0
    seen = {int(item) for item in scene.item if item >= 0}
    if number == 3:  # everything is there but what is seen in its only user
        assert len(seen) > 0.6 * graph.nodes


def test_colours_and_their_legend(graph: Graph) -> None:
    hierarchy, groups = opened(graph, 1)
    for colour in ("kind", "bytes", "device", "dtype", "module"):
        scene = lay_out(graph, hierarchy, groups, colour)
        most = 16 if scene.palette == "sequential" else 12
        assert scene.swatch.max() < most and scene.legend
    values = np.arange(graph.nodes, dtype=np.float64)
    scene = lay_out(graph, hierarchy, groups, values)
    assert scene.palette == "sequential" and len(np.unique(scene.swatch)) > 3


def texts(picture: str) -> list[str]:
    return ["".join(each.itertext()) for each in ET.fromstring(picture).iter() if each.text]


def test_a_picture_stands_where_no_widget_can_run(graph: Graph) -> None:
    hierarchy, groups = opened(graph, 1)
    scene: Scene = lay_out(graph, hierarchy, groups)
    said = " ".join(texts(svg(scene, "step(x) & more")))
    assert "step(x) & more" in said and "LlamaModel" in said and "optimizer" in said
    everything = lay_out(graph, *opened(graph, 3))
    assert len(svg(everything, "all")) < 2_000_000
    assert any("1,5" in each or "1500" in each for each in texts(svg(everything, "all")))


def test_the_explorer_answers_a_view(graph: Graph) -> None:
    explorer = Explorer(graph)
    before = explorer.scene().boxes
    (node, *_) = explorer.search("matmul layers.2 gate_proj backward")
    assert node not in explorer.scene().item
    explorer.reveal(node)
    assert node in explorer.scene().item and explorer.scene().boxes > before
    rows = dict(explorer.details(node))
    assert rows["operation"] == "Matmul" and rows["phase"] == "backward"
    assert "layers.2" in rows["module"] and rows["FLOPs"] != "0"
    needs, needed = explorer.neighbours(node)
    assert all(node in explorer.neighbours(each)[1] for each in needs) and needed
    closed = int(explorer.scene().item[explorer.scene().kind == Kind.GROUP][0])
    count = explorer.scene().boxes
    explorer.toggle(closed)
    assert explorer.scene().boxes > count
    explorer.toggle(closed)
    assert explorer.scene().boxes == count
    for by in explorer.colours():
        explorer.colour(by)
        assert explorer.scene().boxes == count
    explorer.close_all()
    assert explorer.scene().boxes < before + 1
    explorer.open_all()
    assert explorer.scene().boxes > count
    assert "all_sum" not in explorer.summary and "peak" in explorer.summary
