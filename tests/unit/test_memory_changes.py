"""What grew between two moments, and what deleting variables would free."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from arrays import ones

from mlxbench_kernel import native
from mlxbench_kernel.memory import HOLDERS, Freeable, attribute, freeable, grew

KB = 1000


pytestmark = pytest.mark.usefixtures("counted")


def freed(variables: dict[str, Any], name: str) -> int:
    """What deleting a variable does free."""
    before = mx.get_active_memory()
    del variables[name]
    gc.collect()
    return before - mx.get_active_memory()


def changes(before, after, under: str = "") -> dict[str, tuple[int, int, int]]:
    found = [each for each in grew(before, after, under) if each.kind not in ("cache",)]
    return {each.path: (each.bytes, each.nodes, each.arrays) for each in found}


def test_what_grew_is_named_as_narrowly_as_it_can_be() -> None:
    class Trainer:
        pass

    trainer = Trainer()
    trainer.log = {"losses": [ones(KB)], "steps": [ones(KB)]}
    variables = {"trainer": trainer, "old": ones(5 * KB), "same": ones(KB)}
    before = attribute(variables)
    trainer.log["losses"] += [ones(KB) for _ in range(3)]
    variables["new"] = ones(2 * KB)
    del variables["old"]
    after = attribute(variables)
    assert changes(before, after) == {
        "trainer.log.losses": (3 * KB, 0, 3), "new": (2 * KB, 0, 1), "old": (-5 * KB, 0, -1),
    }  # fmt: skip
    assert list(changes(before, after)) == ["trainer.log.losses", "new", "old"], "most first"
    assert changes(before, after, "trainer.log.losses") == {
        f"trainer.log.losses.{i}": (KB, 0, 1) for i in (1, 2, 3)
    }
    assert changes(after, after) == {}


def test_another_name_for_a_buffer_is_no_growth() -> None:
    base = ones(50 * KB)
    variables = {"base": base}
    first = attribute(variables)
    variables["view"] = base[: 10 * KB]
    mx.eval(variables["view"])
    second = attribute(variables)
    assert changes(first, second) == {}
    del variables["base"], base
    third = attribute(variables)
    assert changes(second, third) == {"base": (-50 * KB, 0, -1)}, "it counts for view now"


def test_a_graph_that_grows() -> None:
    total = mx.array(0.0)
    first = attribute({"total": total})
    for _ in range(10):
        total = total + ones(KB).sum()
    second = attribute({"total": total})
    size, nodes, arrays = changes(first, second)["total"]
    assert size > 10 * KB - 10 and nodes >= 20 and arrays == 0


def everything() -> dict[str, Any]:
    model = nn.Linear(100, 100)
    mx.eval(model)
    base, shown = ones(40 * KB), ones(70 * KB)
    view = base[:KB]
    mx.eval(view)
    return {
        "alone": ones(30 * KB), "base": base, "view": view, "model": model,
        "step": nn.value_and_grad(model, lambda x: model(x)), "shown": shown, "Out": {4: shown},
        "lazy": ones(20 * KB) * 2, "plain": [1, 2, 3],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["alone", "base", "view", "model", "step", "shown", "lazy"])
def test_what_is_said_to_be_freed_is(name: str) -> None:
    variables = everything()
    said = {each.name: each.bytes for each in freeable(attribute(variables, {"Out"}))}
    assert freed(variables, name) == said.get(name, 0)


@pytest.mark.parametrize("names", [["base", "view"], ["model", "step"], ["shown", "Out"]])
def test_what_is_said_to_be_freed_together_is(names: list[str]) -> None:
    variables = everything()
    called = ", ".join(names).replace("Out", "IPython's results")
    said = {each.name: each.bytes for each in freeable(attribute(variables, {"Out"}))}
    assert sum(freed(variables, name) for name in names) == said[called]


def test_the_most_first_and_why_some_would_not_be_freed() -> None:
    variables = everything()
    variables["mixed"] = [variables["base"], ones(10 * KB)]
    found = freeable(attribute(variables, {"Out"}))
    together = {each.name: each.how for each in found if "," in each.name}
    assert together["shown, IPython's results"] == "del shown and %reset -f out"
    assert together.keys() == {"shown, IPython's results", "base, view, mixed", "model, step"}
    found = [each for each in found if "," not in each.name]
    assert [each.name for each in found] == ["alone", "lazy", "mixed"]
    assert found[0] == Freeable("alone", "uint8", 30 * KB, 0, {}, "del alone")
    assert found[1].nodes > 0
    assert found[2].held_back == {"base": 40 * KB, "view": 40 * KB}
    assert len(freeable(attribute(variables, {"Out"}), count=1)) == 1
    variables["Out"][5] = ones(25 * KB)
    [out] = [
        each for each in freeable(attribute(variables, {"Out"})) if each.name == "IPython's results"
    ]
    assert (out.bytes, out.held_back, out.how) == (25 * KB, {"shown": 70 * KB}, "%reset -f out")


def test_what_is_held_where_nobody_looks_is_not_freed() -> None:
    local, handle, kept, lazy = ones(KB), ones(KB), ones(KB), ones(KB)
    other, graph = native.load().handle(handle), lazy + 1
    variables = {"local": local, "handle": handle, "kept": kept, "lazy": lazy, "free": ones(KB),
                 "inside": [ones(KB)]}  # fmt: skip
    outside = variables["inside"]
    HOLDERS["kept"] = lambda: [kept]
    del handle, lazy
    try:
        found = attribute(variables)
    finally:
        del HOLDERS["kept"]
    assert [each.name for each in freeable(found)] == ["free"]
    assert outside and other is not None and graph is not None and local is not None


def test_two_names_of_the_same_are_deleted_together() -> None:
    pair = [ones(10 * KB)]
    variables = {"one": {"pair": pair}, "two": pair}
    del pair
    [both] = freeable(attribute(variables))
    assert (both.name, both.bytes, both.how) == ("one, two", 10 * KB, "del one, two")
    del variables["one"]
    assert [each.bytes for each in freeable(attribute(variables))] == [10 * KB]
