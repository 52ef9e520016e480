"""Graphs that are taken away: as text, to other tools, and in files that come back the same."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import graph_models
import mlx.core as mx
import numpy as np
import pytest
from needs import require

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.graph import (
    Graph,
    Phase,
    capture,
    load,
    save,
    to_dot,
    to_networkx,
    to_rustworkx,
    to_text,
)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """A captured step of a small Llama."""
    return graph_models.training_graph(graph_models.small_llama(layers=2))


@pytest.fixture(scope="module")
def forward() -> Graph:
    """The Llama called, with what ``mx.compile`` has fused in it."""
    case = graph_models.small_llama(layers=2)
    graph = capture(case.model, case.x, title="model(x)")
    assert graph.fused and graph.names and len(graph.scopes) > 2
    return graph


@pytest.fixture(scope="module")
def small() -> Graph:
    """Two nodes and two inputs; ``divmod`` has two outputs, and ``x`` is taken twice."""
    x, y = mx.ones((2, 3)), mx.ones(3)
    mx.eval(x, y)
    quotient, _ = mx.divmod(x, mx.broadcast_to(y, x.shape))
    return capture(quotient * x, namespace={"x": x, "y": y}, title="q * x")


# As text


def test_text_has_a_line_per_node(small: Graph) -> None:
    assert to_text(small).splitlines() == [
        "%0 = x float32 [2, 3]",
        "%1 = y float32 [3]",
        "%2 = Broadcast(%1, shape=[2, 3]) float32 [2, 3]",
        "%3 = DivMod(%0, %2) float32 [2, 3], float32 [2, 3]",
        "%4 = Multiply(%3.0, %0) float32 [2, 3]",
    ]
    assert to_text(small, [4, 0]).splitlines()[1] == "%0 = x float32 [2, 3]"
    assert to_text(small, []) == ""
    for wrong in (-1, 5):
        with pytest.raises(UsageError, match=f"no node {wrong}: the graph has nodes 0 to 4"):
            to_text(small, [wrong])


def test_text_says_module_phase_and_what_is_fused(graph: Graph, forward: Graph) -> None:
    lines = to_text(graph).splitlines()
    assert len(lines) == graph.nodes
    assert any("model.layers.1.mlp.up_proj (backward)" in line for line in lines)
    assert any(line.endswith("= model.layers.0.mlp.up_proj.weight (new)") for line in lines)
    node = next(iter(forward.fused))
    (line,) = to_text(forward, [node]).splitlines()
    assert line.startswith(f"%{node} = Compiled(") and line.endswith("  model.layers.0.mlp")
    assert "{" + ", ".join(forward.fused[node]) + "}" in line


# For Graphviz


def scoped(graph: Graph) -> list[bool]:
    return [graph.scopes[scope].path != "" for scope in graph.scope.tolist()]


def test_dot_has_all_nodes_and_edges_and_modules_as_clusters(graph: Graph) -> None:
    text = to_dot(graph)
    lines = text.splitlines()
    assert sum(" -> " in line for line in lines) == graph.edges
    assert sum(" [label=" in line for line in lines) == graph.nodes
    clusters = [line for line in lines if "subgraph" in line]
    assert any('label="model.layers.1.mlp MLP"' in line for line in clusters)
    assert len(clusters) == lines.count("  }")
    placed = re.findall(r" n(\d+);", text)
    assert len(placed) == len(set(placed)) == np.count_nonzero(scoped(graph))


def test_graphviz_reads_it(graph: Graph, tmp_path: Path) -> None:
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    (tmp_path / "g.dot").write_text(to_dot(graph))
    done = subprocess.run(["dot", "-Tcanon", "g.dot"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_labels_in_dot_are_quoted() -> None:
    x = mx.ones(2)
    mx.eval(x)
    text = to_dot(capture(x + 1, namespace={'a "b"\\n': x}))
    assert 'label="a \\"b\\"\\\\n\\nfloat32 [2]"' in text


# For networkx and rustworkx


def there(name: str) -> Any:
    require(importlib.util.find_spec(name) is not None, f"{name} is not installed")
    return importlib.import_module(name)


def test_networkx_gets_nodes_edges_and_what_is_known_of_them(graph: Graph, small: Graph) -> None:
    networkx = there("networkx")
    whole = to_networkx(graph)
    assert isinstance(whole, networkx.MultiDiGraph)
    assert (whole.number_of_nodes(), whole.number_of_edges()) == (graph.nodes, graph.edges)
    assert whole.graph["title"] == "step(x)"
    assert list(networkx.topological_sort(whole))  # no cycles
    longest = networkx.dag_longest_path_length(networkx.DiGraph(whole), weight=None)
    assert longest > 20

    found = to_networkx(small)
    assert found.nodes[3] == {
        "label": "DivMod", "primitive": "DivMod", "arguments": "", "module": "",
        "phase": "forward", "name": "", "device": "cpu", "stream": int(small.stream[3]),
        "dtypes": ["float32", "float32"], "shapes": [(2, 3), (2, 3)], "nbytes": 48,
    }  # fmt: skip
    assert found.nodes[0]["label"] == found.nodes[0]["name"] == "x"
    assert found.nodes[0]["primitive"] == ""
    edges = sorted(
        (source, target, data["position"]) for source, target, data in found.edges.data()
    )
    assert edges == [(0, 3, 0), (0, 4, 1), (1, 2, 0), (2, 3, 1), (3, 4, 0)]
    assert found.edges[3, 4, 0] == {
        "array": 3, "position": 0, "dtype": "float32", "shape": (2, 3),
    }  # fmt: skip


def test_networkx_keeps_an_array_that_is_taken_twice() -> None:
    there("networkx")
    x = mx.ones(2)
    mx.eval(x)
    found = to_networkx(capture(x * x, namespace={"x": x}))
    assert [data["position"] for *_, data in found.edges.data()] == [0, 1]


def test_networkx_can_write_it_on(graph: Graph) -> None:
    """Plain Python values only: JSON knows no NumPy numbers."""
    networkx = there("networkx")
    text = json.dumps(networkx.node_link_data(to_networkx(graph), edges="edges"))
    assert len(json.loads(text)["nodes"]) == graph.nodes


def test_rustworkx_gets_the_same(graph: Graph) -> None:
    rustworkx, networkx = there("rustworkx"), there("networkx")
    found, other = to_rustworkx(graph), to_networkx(graph)
    assert isinstance(found, rustworkx.PyDiGraph) and found.attrs == {"title": "step(x)"}
    assert found.node_indices() == list(range(graph.nodes))
    assert found.nodes() == [other.nodes[node] for node in range(graph.nodes)]
    assert sorted(
        found.weighted_edge_list(), key=lambda edge: (*edge[:2], edge[2]["position"])
    ) == (sorted(other.edges.data(), key=lambda edge: (*edge[:2], edge[2]["position"])))
    assert rustworkx.is_directed_acyclic_graph(found)
    longest = networkx.dag_longest_path_length(networkx.DiGraph(other), weight=None)
    assert rustworkx.dag_longest_path_length(found) == longest


@pytest.mark.parametrize("name", ["networkx", "rustworkx"])
def test_without_the_library_it_says_what_to_install(
    name: str, small: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as raised:
        {"networkx": to_networkx, "rustworkx": to_rustworkx}[name](small)
    assert str(raised.value) == f"{name} is not installed: type %pip install {name}"


# In files


def equal(one: Graph, other: Graph) -> bool:
    for field in fields(Graph):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype, field.name
            assert np.array_equal(first, second), field.name
        else:
            assert type(first) is type(second) and first == second, field.name
    return True


@pytest.mark.parametrize("which", ["graph", "forward", "small"])
def test_a_saved_graph_comes_back_the_same(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    graph: Graph = request.getfixturevalue(which)
    path = tmp_path / "g.json"
    graph.save(path)
    found = load(path)
    assert equal(found, graph)
    assert to_text(found) == to_text(graph) and to_dot(found) == to_dot(graph)
    found.primitive[0] += 0  # arrays of its own, which may be written to
    assert [path.name for path in tmp_path.iterdir()] == ["g.json"]
    save(found, str(path))  # replaces it
    assert equal(load(str(path)), graph)


def test_graphs_without_anything_are_saved_too(tmp_path: Path) -> None:
    x = mx.ones(())
    incomplete = capture(x + 1).with_(names={}, complete=False, title='“ü” "\n')
    incomplete.save(tmp_path / "g.json")
    assert equal(load(tmp_path / "g.json"), incomplete)


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        load(path)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_is_no_graph_is_refused_in_one_line(small: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    assert refused(path).endswith("no such file: name a file that graph.save wrote")
    assert "Is a directory" in refused(tmp_path)
    small.save(path)
    whole = path.read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert refused(path).endswith(
            "is damaged (it is no JSON, or only a part of it): save the graph again"
        )
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    assert "it is no JSON" in refused(path)
    for other in ("[]", "3", "{}", '{"format": "another"}'):
        path.write_text(other)
        assert "holds no graph of mlxbench" in refused(path)


@pytest.mark.parametrize("version", [2, 99, 0, -1, "1", None, True, 1.5])
def test_other_versions_are_refused(version: object, small: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    small.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    message = refused(path)
    newer = version in (2, 99)
    assert ("type pip install --upgrade mlxbench" in message) == newer
    assert newer or f"is damaged (its format version is {version!r})" in message


def test_damage_inside_is_found(small: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    small.save(path)
    contents = json.loads(path.read_text())
    for name in contents:
        if name not in ("format", "version"):
            path.write_text(json.dumps({k: v for k, v in contents.items() if k != name}))
            assert f"'{name}' is missing" in refused(path)
            for wrong in (None, 3, "text", [3], {"a": 1}):
                path.write_text(json.dumps({**contents, name: wrong}))
                if name not in ("title", "hint", "complete") and (name, wrong) != ("seconds", 3):
                    refused(path)
    for name, text in contents["arrays"].items():
        for wrong in (None, "", text[:-8], "A" + text[1:], "%" + text):
            changed = {**contents, "arrays": {**contents["arrays"], name: wrong}}
            path.write_text(json.dumps(changed))
            assert "is damaged (" in refused(path), name


def test_arrays_that_do_not_fit_together_are_found(small: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    for change in (
        {"primitive": small.primitive[:-1]},
        {"inputs": small.inputs + small.arrays},
        {"inputs": small.inputs[::-1].copy()},
        {"dtype": small.dtype + 7},
        {"phase": small.phase + len(Phase)},
        {"outputs": small.outputs - 99},
        {"extents": -small.extents},
        {"output_start": small.output_start[::-1].copy()},
        {"names": {99: "x"}},
        {"fused": {-1: ("Exp",)}},
    ):
        small.with_(**change).save(path)
        assert "does not fit the rest" in refused(path), change


def written_over(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what is in a file, as a fault of the disk or a curious person does."""
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def packed(values: Any) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values).tobytes())).decode()


def test_what_was_written_over_is_refused_though_it_looks_like_a_graph(
    small: Graph, tmp_path: Path
) -> None:
    path = tmp_path / "g.json"
    for name in ("extents", "nbytes", "device", "stream", "held", "buffer_bytes", "id", "inputs"):
        values = getattr(small, name).copy()
        for absurd in (1, 10**9, 2**40, 2**62, np.iinfo(values.dtype).max):
            if absurd > np.iinfo(values.dtype).max or absurd == values[0]:
                continue
            values[0] = absurd
            small.save(path)
            written_over(path, lambda all, v=values, n=name: all["arrays"].update({n: packed(v)}))
            assert "is damaged (" in refused(path), (name, absurd)
    small.save(path)
    written_over(path, lambda all: all.update(title="another"))
    assert "its contents are not those that were written" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"names": {"9" * 5000: "x"}},
        {"names": {str(2**70): "x"}},
        {"seconds": 10**400},
        {"scopes": [["a", "b", "c"]]},
    ],
)
def test_absurd_numbers_are_refused(change: dict[str, Any], small: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    small.save(path)
    written_over(path, lambda all: all.update(change))
    assert "is damaged (" in refused(path)


def test_an_array_that_unpacks_to_more_than_there_can_be_is_refused(
    small: Graph, tmp_path: Path
) -> None:
    path = tmp_path / "g.json"
    small.save(path)
    unpacked = zlib.compressobj(9)
    zeros = b"".join(unpacked.compress(bytes(1 << 24)) for _ in range(20)) + unpacked.flush()
    text = base64.b64encode(zeros).decode()
    written_over(path, lambda all: all["arrays"].update(extents=text))
    assert "an array is cut off or too long" in refused(path)


def test_a_graph_is_one_line_in_a_terminal(graph: Graph) -> None:
    assert re.fullmatch(
        r"<Graph step\(x\): [\d,]+ operations, \d+ inputs and constants>", repr(graph)
    )
    assert repr(capture(mx.ones(3) + 1).with_(title="a\nb")).count("\n") == 0
    sines = capture(mx.sin(mx.sin(mx.ones(3))))
    called = [name.replace("Sin", "Sum AllReduce") for name in sines.primitives]
    assert repr(sines.with_(primitives=tuple(called))).endswith(" constants, 2 × all_sum>")


def test_the_package_offers_it_and_imports_nothing_before() -> None:
    code = (
        "import sys, mlxbench_kernel as m\n"
        "assert not {'numpy', 'mlx', 'networkx', 'rustworkx', 'IPython'} & set(sys.modules)\n"
        "from mlxbench_kernel import load, to_dot, to_mlxfn, to_networkx, to_rustworkx, to_text\n"
        "assert not {'networkx', 'rustworkx', 'IPython', 'ipyparallel'} & set(sys.modules)\n"
        "assert all(getattr(m, name) is not None for name in m.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_cannot_be_written_leaves_the_older_one(small: Graph, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none" / "g.json", "the folder does not exist: make it, or name another one"),
        (tmp_path, "it is a folder: name a file in it, as g.json"),
    ):
        with pytest.raises(StorageError) as raised:
            small.save(path)
        assert str(raised.value) == f"cannot write {path}: {message}"
    assert list(tmp_path.iterdir()) == []
