"""What holds the memory of a process: names, kinds and real bytes, without changing anything."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from arrays import computing, ones
from mlx.utils import tree_flatten

from mlxbench_kernel import native
from mlxbench_kernel.memory import HOLDERS, Holdings, attribute, folded
from mlxbench_kernel.memory.walk import ITEMS
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import Stepper, snapshots

KB = 1000


pytestmark = pytest.mark.usefixtures("counted")


def real(*trees: Any) -> int:
    return mx.get_array_buffer_size(*trees)


def trained() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 50))
    optimizer = optim.Adam(0.1)
    optimizer.init(model.trainable_parameters())
    mx.eval(model, optimizer.state)
    return {"optimizer": optimizer, "data": ones(100 * KB), "model": model}


def row(found: Holdings, path: str, *columns: str) -> Any:
    values = [getattr(found, column)[found.find(path)] for column in columns]
    return values[0] if len(values) == 1 else tuple(values)


def test_a_model_and_its_optimizer_by_name_and_kind() -> None:
    before = mx.get_active_memory()
    variables = trained()
    found = attribute(variables)
    weight = variables["model"].layers[0].weight
    assert row(found, "model.layers.0.weight", "own", "types", "shapes", "kinds") == (
        real(weight), "float32", [100, 100], "parameters",
    )  # fmt: skip
    assert row(found, "model", "bytes") == real(variables["model"])
    assert row(found, "optimizer", "bytes") == real(variables["optimizer"].state)
    assert row(found, "optimizer.state.layers.0.weight.m", "own", "kinds") == (
        real(weight), "optimizer",
    )  # fmt: skip
    assert row(found, "data", "bytes", "kinds") == (100 * KB, "variables")
    added = mx.get_active_memory() - before
    assert sum(found.buffer_bytes) == pytest.approx(added, abs=200), "the key of mx.random at most"
    assert found.active == mx.get_active_memory() and found.stopped == []


def test_all_kinds_add_up_to_active_and_cache_memory() -> None:
    found = attribute({**trained(), "lazy": ones(KB) * 2, "a": np.zeros(9)})
    assert sum(found.by_kind().values()) == found.active + found.cache
    tops = [size for size, parent in zip(found.bytes, found.parents, strict=True) if parent < 0]
    assert sum(tops) == found.active + found.cache
    assert found.unattributed == row(found, "held by nothing found", "bytes")


def test_a_shared_buffer_counts_once_and_says_with_whom() -> None:
    model = trained()["model"]
    base = ones(100 * KB)
    view, pair = base[: 50 * KB], [base, ones(KB)]
    mx.eval(view)
    variables = {"weights": tree_flatten(model.parameters()), "view": view, "base": base,
                 "pair": pair, "model": model}  # fmt: skip
    found = attribute(variables)
    assert row(found, "view", "own", "shared") == (100 * KB, 0), "the first has all of the buffer"
    assert row(found, "base", "own", "shared") == (0, 100 * KB)
    assert row(found, "pair", "bytes", "shared") == (KB, 100 * KB)
    assert row(found, "model", "bytes", "shared") == (real(model), 0), "parameters come first"
    assert row(found, "weights", "bytes", "shared") == (0, real(model))
    assert found.shared_with(found.find("base")) == {
        found.find("view"): 100 * KB,
        found.find("pair.0"): 100 * KB,
    }
    assert sum(found.buffer_bytes) == real(list(variables.values()))


def test_one_object_under_two_names_is_gone_into_once() -> None:
    model = trained()["model"]
    found = attribute({"trainer": {"net": model}, "model": model, "again": model})
    node = found.find("model")
    assert row(found, "again", "bytes", "shared") == (0, real(model))
    assert row(found, "trainer", "bytes", "shared") == (0, real(model))
    assert sorted(found.same) == sorted(
        [[found.find("trainer.net"), node], [found.find("again"), node]]
    )


def test_sizes_are_those_of_real_buffers() -> None:
    wide = mx.broadcast_to(mx.array(1.0), (1000, 1000))
    part = ones(100 * KB)[:10]
    mx.eval(wide, part)
    found = attribute({"wide": wide, "part": part})
    assert row(found, "wide", "own") == real(wide) < KB
    assert row(found, "part", "own") == real(part) == 100 * KB


def test_a_lazy_array_holds_what_its_graph_keeps_alive() -> None:
    seen = ones(10 * KB)
    lazy = (seen + ones(100 * KB)[: 10 * KB]) * 2
    parts = mx.split(lazy, 2)
    before = mx.get_active_memory()
    found = attribute({"lazy": lazy, "parts": parts, "seen": seen})
    assert mx.get_active_memory() == before, "nothing was evaluated"
    assert native.load().is_lazy(lazy)
    assert row(found, "seen", "own", "kinds") == (10 * KB, "variables")
    own, shared, nodes, kind = row(found, "lazy", "own", "shared", "nodes", "kinds")
    assert kind == "graph" and shared == 10 * KB
    assert 100 * KB <= own < 101 * KB, "and the 2"
    assert nodes == sum(map(bool, native.load().read_graph([lazy], [])["primitive"]))
    assert row(found, "parts", "nodes") == 1, "what is behind it counts for the first"


def test_a_graph_of_a_hundred_thousand_nodes_needs_no_recursion() -> None:
    total = mx.array(0.0)
    for _ in range(100_000):
        total = total + 1.0
    found = attribute({"total": total})
    assert row(found, "total", "nodes") == 100_000


def test_caches_of_mlx_lm_and_what_registers_itself() -> None:
    from mlx_lm.models import cache

    caches = [cache.KVCache(), cache.RotatingKVCache(max_size=64)]
    for each in caches:
        each.update_and_fetch(mx.ones((1, 2, 5, 8)), mx.ones((1, 2, 5, 8)))
    mx.eval([each.state for each in caches])
    model, old = trained()["model"], ones(30 * KB)
    HOLDERS["old states"] = lambda: {"step 3": [model.layers[0].weight, old]}
    HOLDERS["broken"] = lambda: [][0]
    try:
        found = attribute({"caches": caches, "model": model})
    finally:
        del HOLDERS["old states"], HOLDERS["broken"]
    assert row(found, "caches.0.keys", "kinds", "own") == ("kv cache", real(caches[0].keys))
    assert found.by_kind()["kv cache"] == real([each.state for each in caches])
    assert row(found, "old states.step 3", "bytes", "shared", "kinds") == (
        30 * KB, real(model.layers[0].weight), "snapshots",
    )  # fmt: skip


def test_what_ipython_keeps_is_its_own() -> None:
    named, result = ones(10 * KB), ones(20 * KB)
    variables = {"Out": {1: named, 2: result}, "_": result, "_2": result, "named": named,
                 "group": ones(KB)}  # fmt: skip
    found = attribute(variables, hidden={"Out", "group"})
    assert row(found, "named", "own") == 10 * KB
    assert row(found, "IPython's results", "bytes", "shared", "kinds") == (
        21 * KB,
        10 * KB,
        "history",
    )
    assert row(found, "IPython's results.Out.2", "own") == 20 * KB


def test_arrays_of_a_failed_cell_are_found_in_its_traceback(monkeypatch) -> None:
    def fail() -> None:
        lost = ones(40 * KB)
        raise ValueError(len(lost))

    try:
        fail()
    except ValueError as error:
        monkeypatch.setattr("sys.last_value", error, raising=False)
    found = attribute({})
    [path] = [path for path, own in zip(found.paths, found.own, strict=True) if own == 40 * KB]
    assert path.startswith("last error.") and "in fail" in path


class Slots:
    __slots__ = ("_Slots__hidden", "__weakref__", "array", "empty")


class Strange(list):
    def __iter__(self):
        raise AssertionError

    def __getattr__(self, name):
        raise AssertionError

    @property
    def array(self):
        raise AssertionError

    __len__ = __eq__ = __hash__ = __bool__ = __iter__


def strange_objects() -> dict[str, Any]:
    """Each holds 10 kB in another way."""
    slots, strange = Slots(), Strange()
    slots.array, slots._Slots__hidden = ones(9 * KB), ones(KB)
    list.append(strange, ones(5 * KB))
    strange.deep = ({"x": ones(5 * KB)},)
    strange.cycle = strange

    default = ones(5 * KB)

    def closure(captured=default):
        return captured, kept

    kept = ones(5 * KB)

    def generate(taken):
        inside = ones(5 * KB)
        yield taken
        yield inside

    generator = generate(ones(5 * KB))
    next(generator)
    nested: list[Any] = [ones(10 * KB)]
    for _ in range(10_000):
        nested = [nested]
    weights = ones(10 * KB)
    keys = {("a", 1): ones(5 * KB), Slots: ones(5 * KB)}
    compiled = mx.compile(lambda x: x + weights)
    return {"slots": slots, "strange": strange, "closure": closure, "generator": generator,
            "nested": nested, "keys": keys, "compiled": compiled}  # fmt: skip


def test_gradients_and_names_that_are_not_text() -> None:
    model, both = trained()["model"], {Slots(): ones(KB), Slots(): ones(KB)}
    _, grads = nn.value_and_grad(model, lambda x: model(x).sum())(mx.ones((2, 100)))
    mx.eval(grads)
    found = attribute({"model": model, "grads": grads, "both": both, "cache": ones(KB)})
    assert row(found, "grads.layers.0.weight", "kinds", "shapes") == ("gradients", [100, 100])
    assert [row(found, f"both.{name}", "own") for name in ("<Slots>", "<Slots> (2)")] == [KB, KB]
    assert row(found, "cache", "kinds") == "variables" and len(set(found.paths)) == len(found.paths)
    top = [found.labels[node] for node in found.children() if found.host[node] == 0]
    sizes = [row(found, name, "bytes") for name in top]
    assert sizes == sorted(sizes, reverse=True) and "both" in top


def test_strange_objects_are_looked_into_without_running_their_code() -> None:
    variables = strange_objects()
    variables["everything"] = variables
    found = attribute(variables)
    assert {
        found.labels[node]: found.bytes[node]
        for node, parent in enumerate(found.parents)
        if parent < 0 and found.kinds[node] in ("variables", "parameters")
    } == dict.fromkeys(strange_objects(), 10 * KB)
    assert row(found, "slots.array", "own") == 9 * KB
    assert row(found, "keys.('a', 1)", "own") == 5 * KB
    assert row(found, "closure.kept", "own") == 5 * KB


def test_nothing_is_kept_alive_afterwards() -> None:
    variables = strange_objects()
    slots = weakref.ref(variables["slots"])
    before = mx.get_active_memory()
    found = attribute(variables)
    gc.disable()
    try:
        variables["generator"].close()
        variables.clear()
        assert slots() is None
        assert mx.get_active_memory() <= before - 6 * 10 * KB, "all but the one with a cycle"
    finally:
        gc.enable()
    assert found.bytes


def test_long_lists_and_many_objects_end_the_walk_and_it_says_so() -> None:
    numbers = list(range(ITEMS + 5))
    found = attribute({"numbers": numbers, "z": ones(KB)})
    assert found.stopped == [f"only {ITEMS:,} of {ITEMS + 5:,} in numbers"]
    assert row(found, "z", "own") == KB
    found = attribute({"first": ones(KB), "long": [[] for _ in range(5_000)], "z": ones(KB)},
                      objects=1_000)  # fmt: skip
    assert row(found, "first", "own") == KB and "z" not in found.paths
    assert "only 998 of 5,000 in long" in found.stopped[0] and "the walk ended" in found.stopped[1]


def test_memory_beside_mlx_is_apart() -> None:
    numbers = np.zeros(1000)
    found = attribute({"a": [numbers, numbers[5:], ones(KB)], "b": numbers, "raw": b"x" * 500})
    assert row(found, "a", "bytes", "host") == (KB, 8 * KB)
    assert row(found, "raw", "bytes", "host") == (0, 500)
    assert "b" not in found.paths


def test_the_result_is_json_and_comes_back() -> None:
    found = attribute({**trained(), "lazy": ones(KB) * 2, "keys": {Slots: ones(KB)}})
    assert Holdings(**json.loads(json.dumps(found.to_dict()))) == found


def test_beside_a_thread_that_evaluates_graphs_are_left_alone() -> None:
    source = ones(10 * KB)
    found = attribute({"lazy": source * 2, "source": source}, graphs=False)
    assert row(found, "lazy", "own", "nodes", "shared") == (0, 0, 0) and not found.graphs
    assert row(found, "source", "own") == 10 * KB


@pytest.fixture
def unprotected(monkeypatch) -> Iterator[None]:
    """No steppers of other tests, and afterwards nothing is protected, and mx.eval is MLX's."""
    monkeypatch.setattr(snapshots, "_ALL", weakref.WeakValueDictionary())
    yield
    PROTECTION.trees.clear()
    PROTECTION.kept.clear()
    mx.eval, PROTECTION._watching = PROTECTION._evaluate, False


@pytest.mark.usefixtures("unprotected")
def test_kept_states_of_a_stepper_and_protected_values_are_found() -> None:
    model, optimizer = nn.Linear(100, 100), optim.Adam(0.1)
    mx.eval(model)
    batches = [(mx.ones((4, 100)), mx.ones((4, 100))) for _ in range(5)]
    mx.eval(batches)

    def loss(model: nn.Linear, x: mx.array, y: mx.array) -> mx.array:
        return (model(x) - y).square().mean()

    stepper = Stepper(model, optimizer, loss, batches)
    for _ in range(3):
        stepper.advance()
    found = attribute({"model": model, "optimizer": optimizer, "stepper": stepper})
    size = real(model, optimizer.state)
    assert row(found, "kept states.main 1", "bytes", "kinds") == (
        pytest.approx(size, rel=0.01), "snapshots",
    )  # fmt: skip
    assert found.by_kind()["snapshots"] == pytest.approx(3 * size, rel=0.02)
    _, shared = row(found, "protected values", "bytes", "shared")
    assert shared == pytest.approx(size, rel=0.02), "those of now are no more than the model's"
    assert "stepper" not in found.paths


def test_a_picture_of_the_largest_has_the_same_sums() -> None:
    many = {
        "small": [ones(KB) for _ in range(300)],
        "large": [ones((9 + i) * KB) for i in range(5)],
    }
    whole = attribute({**trained(), "many": many})
    part = folded(whole, most=60)
    assert len(part.labels) <= 90 < len(whole.labels)
    assert part.by_kind() == whole.by_kind() and part.unattributed == whole.unattributed
    for name in ("model", "many", "many.small", "many.large.4"):
        assert row(part, name, "bytes") == row(whole, name, "bytes")
    rest = part.children(part.find("many.small"))[0]
    left = len(part.children(part.find("many.small"))) - 1
    assert part.labels[rest] == f"… {300 - left} more" and part.own[rest] == (300 - left) * KB
    assert folded(whole) is whole
    assert len(json.dumps(part.to_dict())) < len(json.dumps(whole.to_dict())) / 3


def test_beside_a_thread_that_computes() -> None:
    variables: dict[str, Any] = {"kept": ones(10 * KB)}
    with computing(variables):
        found = [attribute(variables, graphs=False) for _ in range(200)]
    assert {row(each, "kept", "own") for each in found} == {10 * KB}
    assert any(each.by_kind()["variables"] > 20 * KB for each in found)
