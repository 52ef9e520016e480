"""The view of a graph, as the browser talks to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from graph_models import small_llama, training_graph
from IPython.display import display
from IPython.utils.capture import capture_output

from mlxbench_kernel.graph import Explorer, Graph, capture, diff, profile, read
from mlxbench_kernel.graph.scene import Kind
from mlxbench_kernel.widgets import graph_view, graphs
from mlxbench_kernel.widgets.graph_view import GraphView

Ask = Callable[..., tuple[dict[str, Any], list[Any]]]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return training_graph(small_llama())


def asking(view: GraphView, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask as the browser does, and get the answer."""
    sent: list[tuple[dict[str, Any], list[Any]]] = []
    monkeypatch.setattr(view, "send", lambda content, buffers=None: sent.append((content, buffers)))

    def ask(what: str, **arguments: Any) -> tuple[dict[str, Any], list[Any]]:
        view._answer(view, {"id": 7, "ask": what, **arguments}, [])
        content, buffers = sent.pop()
        assert content.pop("answer") == 7 and not sent
        json.dumps(content)
        return content, buffers

    return ask


def items_of(explorer: Explorer) -> list[int]:
    """What is drawn as a box, without the frames around."""
    scene = explorer.scene()
    return scene.item[scene.kind != Kind.FRAME].tolist()


def items(view: GraphView) -> list[int]:
    return np.frombuffer(view.scene["item"], "<i4").tolist()


def test_a_scene_travels_as_typed_arrays_and_texts(graph: Graph) -> None:
    explorer = Explorer(graph)
    view, scene = GraphView(explorer), explorer.scene()
    assert items(view) == scene.item.tolist()
    assert np.frombuffer(view.scene["x"], "<f4").tolist() == scene.x.tolist()
    assert view.scene["titles"].split("\n") == list(scene.title)
    assert view.title == "step(x)" and "peak" in view.summary
    assert view.colours[0] == "kind" and "flops" in view.colours


def test_groups_open_and_close(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    view = GraphView(Explorer(graph))
    ask = asking(view, monkeypatch)
    before, fold = items(view), -1 - view.source.hierarchy.title.index("4 × TransformerBlock")
    assert ask("toggle", item=fold) == ({}, [])
    assert len(set(items(view)) - set(before)) == 4 and fold in items(view)
    kinds = dict(zip(items(view), np.frombuffer(view.scene["kind"], "u1").tolist(), strict=True))
    assert kinds[fold] == Kind.FRAME
    ask("close_all")
    closed = items(view)
    node = view.source.search("matmul layers.1 forward")[0]
    assert len(closed) < len(before) and node not in closed
    ask("reveal", item=node)
    assert node in items(view)
    ask("open_all")
    assert len(items(view)) > graph.nodes / 2
    ask("colour", text="bytes")
    assert view.scene["palette"] == "sequential"


def test_details_neighbours_search_and_path(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    view = GraphView(Explorer(graph))
    ask = asking(view, monkeypatch)
    _, (found,) = ask("search", text="matmul layers.1 forward")
    nodes = np.frombuffer(found, "<i4").tolist()
    assert len(nodes) > 3
    answer, _ = ask("details", item=nodes[0])
    assert dict(answer["rows"])["operation"] == "Matmul"
    assert {each["item"] for each in answer["inputs"]} == set(view.source.neighbours(nodes[0])[0])
    path, _ = ask("path", item=nodes[-1], other=nodes[0])  # whichever is clicked first
    assert [path["path"][0]["item"], path["path"][-1]["item"]] == sorted((nodes[0], nodes[-1]))
    assert "Matmul" in ask("text", item=nodes[0])[0]["text"]
    assert ask("export", text="dot")[0]["text"].startswith("digraph")
    assert ask("export", text="svg")[0]["text"].startswith("<svg")
    assert json.loads(ask("export", text="json")[0]["text"])


def test_memory_with_what_is_alive(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    view = GraphView(Explorer(graph))
    prediction = view.source.timeline()
    assert prediction is not None
    at = np.frombuffer(view.timeline["at"], "<i4")
    amount = np.frombuffer(view.timeline["bytes"], "<f4")
    assert at[0] == 0 and at[-1] == len(prediction.order) - 1 and len(at) <= 2003
    assert at[view.timeline["peak"]] == prediction.at
    assert amount[view.timeline["peak"]] == amount.max() == np.float32(prediction.peak)
    answer, _ = asking(view, monkeypatch)("alive", other=prediction.at)
    assert f"operation {prediction.at + 1:,} of" in answer["text"]
    sizes = dict(prediction.alive(prediction.at))
    assert [each["item"] for each in answer["outputs"]] == [
        int(graph.node[array]) for array in list(sizes)[:200]
    ]


def test_a_long_timeline_keeps_its_extremes() -> None:
    x = mx.zeros((4,))
    for step in range(9000):
        x = mx.concatenate([x, x]) if step == 5000 else x[:4] + 1
    prediction = Explorer(read([x])).prediction
    thinned = prediction.thinned(100)
    assert len(thinned) < 110 and prediction.at in thinned
    assert prediction.timeline[thinned].max() == prediction.timeline.max()
    assert prediction.timeline[thinned].min() == prediction.timeline.min()
    assert str(prediction).count("\n") <= 14 and "arrays are alive" in str(prediction)


@pytest.mark.parametrize(
    ("what", "arguments", "said"),
    [
        ("toggle", {"item": 3}, "cannot be opened"),
        ("details", {}, "select one first"),
        ("path", {"item": -2, "other": 3}, "open the group first"),
        ("colour", {"text": "taste"}, "no colour by 'taste'"),
        ("dance", {"item": 3}, "reload the page"),
        ("details", {"item": 10**9}, "Error"),
    ],
)
def test_whatever_is_asked_is_answered(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, what: str, arguments: dict[str, Any], said: str
) -> None:
    answer, _ = asking(GraphView(Explorer(graph)), monkeypatch)(what, **arguments)
    assert said in answer["error"] and "\n" not in answer["error"]


@pytest.mark.usefixtures("shell")
def test_without_a_widget_a_picture_stands_in_its_place(graph: Graph) -> None:
    view = graphs.view_of_graph(graph)
    with capture_output() as captured:
        display(view)
    widget, picture = (output.data for output in captured.outputs)
    assert set(widget) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert widget["text/plain"].startswith("step(x)\n")
    assert set(picture) == {"image/svg+xml"}  # alone: nothing may be preferred to it
    svg = picture["image/svg+xml"]
    # By this beginning the view finds it, to hide it.
    assert svg.startswith(f'<svg id="{view.picture}" ') and "LlamaModel" in svg


@pytest.mark.usefixtures("shell")
def test_the_picture_outlines_what_the_view_has_selected() -> None:
    graph = capture(lambda x: mx.log(mx.sin(x)), mx.ones(3))
    node = next(node for node in range(graph.nodes) if graph.primitive_name(node) == "Log")
    view = graphs.view_of_graph(graph, focus=node)
    with capture_output() as captured:
        display(view)
    drawn = captured.outputs[1].data["image/svg+xml"]
    (outlined,) = re.findall(r'<g class="box middle \w+ focus">.*?</g>', drawn)
    assert ">Log<" in outlined
    assert " focus" not in graphs.view_of_graph(graph).source.picture()


def test_two_graphs_in_one_say_what_is_not_known_of_them() -> None:
    graph = capture(mx.sin, mx.ones(3))
    bare = graph.with_(complete=False, arguments=np.zeros_like(graph.arguments))
    assert "names and edges only" in graphs.view_of_diff(diff(bare, bare)).summary
    assert "names and edges only" not in graphs.view_of_diff(diff(graph, graph)).summary


def test_of_thousands_of_links_it_is_said_how_many_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = mx.ones(3)
    mx.eval(x)
    view = graphs.view_of_graph(capture(lambda x: [mx.sin(x) * i for i in range(300)], x))
    (node,) = view.source.search("x input")
    answer, _ = asking(view, monkeypatch)("details", item=node)
    assert len(answer["outputs"]) == 200 and answer["more"] == {"inputs": 0, "outputs": 100}
    (full,) = view.source.search("sin")[:1]
    answer, _ = asking(view, monkeypatch)("details", item=full)
    assert answer["more"] == {"inputs": 0, "outputs": 0}


def test_an_exported_picture_holds_all_that_is_open() -> None:
    x = mx.ones(3)
    many = capture(lambda x: [mx.sin(x) for _ in range(2_000)], x)
    view = graphs.view_of_graph(many)
    view.source.open_all()
    boxes = len(items_of(view.source))
    assert boxes > 2_000
    exported, shown = view.source.export("svg"), view.source.picture()
    assert exported.count('<g class="box') == boxes and "close groups to see all" not in exported
    assert shown.count('<g class="box') < boxes and "close groups to see all" in shown


def test_a_difference_is_one_view_in_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mx.array([1.0, 2.0])
    before, after = read([mx.sin(x) + 1]), read([mx.cos(x) + 1 + mx.exp(x)])
    view = graphs.view_of_diff(diff(before, after))
    assert view.colours[0] == "difference"
    legend = dict(view.scene["legend"])
    assert set(legend) == {"same", "added", "removed", "changed"}
    titles = view.scene["titles"].split("\n")
    swatch = dict(zip(titles, np.frombuffer(view.scene["swatch"], "u1").tolist(), strict=True))
    assert swatch["Exp"] == legend["added"]
    assert "added" in view.summary
    states = {Kind(kind) for kind in np.frombuffer(view.scene["kind"], "u1").tolist()}
    assert Kind.NODE in states
    answer, _ = asking(view, monkeypatch)("details", item=items(view)[titles.index("Exp")])
    assert ["difference", "added"] in [list(row) for row in answer["rows"]]


def test_a_profile_is_coloured_by_time() -> None:
    view = graphs.view_of_profile(profile([mx.ones((300, 300)) @ mx.ones((300, 300))], repeat=1))
    assert view.colours[0] == "time" and view.scene["palette"] == "sequential"
    assert all(text.endswith("s") for text, _ in view.scene["legend"])


def test_what_took_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mx.zeros((4,))
    for _ in range(120_000):
        x = x + 1.0
    monkeypatch.setattr(graph_view, "LONG", 0.0)
    view = graphs.view_of_graph(capture(x))
    assert re.search(
        r"240,002 operations.* · captured in \d+\.\d s · opened in \d+\.\d s$", view.summary
    )
    assert len(view.source.scene().item) < 5_000  # the rest waits in groups
