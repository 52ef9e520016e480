"""Protected state in one process: put back in place, whatever has changed since."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank.protection import Protection


@pytest.fixture
def protection() -> Iterator[Protection]:
    evaluate = mx.eval
    yield Protection()
    mx.eval = evaluate


def values(*trees: Any) -> list[Any]:
    return [v.tolist() if isinstance(v, mx.array) else v for _, v in tree_flatten(list(trees))]


def train(model: nn.Module, optimizer: Any, steps: int = 1) -> None:
    for _ in range(steps):
        grads = tree_map(mx.ones_like, model.trainable_parameters())
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)


OPTIMIZERS = {
    "Adam": lambda: optim.Adam(1e-2),
    "schedule": lambda: optim.Adam(optim.cosine_decay(1e-2, 10)),
    "MultiOptimizer": lambda: optim.MultiOptimizer(
        [optim.Adam(1e-2), optim.SGD(1e-2, momentum=0.9)], [lambda name, _: "weight" in name]
    ),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_model_and_its_optimizer_go_back_in_place(protection: Protection, kind: str) -> None:
    model, optimizer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), OPTIMIZERS[kind]()
    optimizer.init(model.trainable_parameters())
    layer = model.layers[0]
    protection.protect({"model": model, "optimizer": optimizer})
    train(model, optimizer, 3)
    before, count = values(model, optimizer.state), protection.counts()[-1]
    grads = tree_map(mx.ones_like, model.trainable_parameters())
    optimizer.update(model, grads)  # of which nothing was evaluated
    model.layers[0].extra = mx.ones(3)
    assert protection.put_back(count) == ["model", "optimizer"]
    assert values(model, optimizer.state) == before
    assert model.layers[0] is layer and "extra" not in layer
    train(model, optimizer)
    first = values(model, optimizer.state)
    assert first != before
    assert protection.put_back(count) == ["model", "optimizer"]
    train(model, optimizer)
    assert values(model, optimizer.state) == first, "the same step gives the same again"


def test_lists_dicts_tuples_arrays_and_numbers(protection: Protection) -> None:
    inner = {"w": mx.ones(2)}
    trees: dict[str, Any] = {
        "items": [mx.zeros(1), inner], "pair": (mx.ones(1), inner), "array": mx.arange(3),
        "step": 7, "name": "x",
    }  # fmt: skip
    protection.namespace = names = dict(trees)
    protection.protect(trees)
    assert protection.step() == 7
    names["items"].append(mx.ones(9))
    inner["w"], inner["new"] = mx.zeros(5), 1
    names.update(array=mx.ones(8), step=8, name="y", pair=())
    protection.put_back(protection.counts()[-1])
    assert names["items"] is trees["items"] and len(names["items"]) == 2
    assert inner.keys() == {"w"} and inner["w"].tolist() == [1.0, 1.0]
    assert (names["array"].tolist(), names["step"], names["name"]) == ([0, 1, 2], 7, "x")
    assert names["pair"][0].tolist() == [1.0]


def test_items_that_are_set_in_place_go_back_too(protection: Protection) -> None:
    tree = {"w": mx.zeros(3)}
    protection.protect({"tree": tree})
    for _ in range(2):
        tree["w"][0] = 5.0
        protection.put_back(protection.counts()[-1])
        assert tree["w"].tolist() == [0.0] * 3


def test_the_random_state_goes_back(protection: Protection) -> None:
    tree = [mx.zeros(1)]
    mx.random.seed(3)
    mx.eval(mx.random.uniform())
    protection.protect({"tree": tree})
    drawn = mx.random.uniform(shape=(3,)).tolist()
    protection.put_back(protection.counts()[-1])
    assert mx.random.uniform(shape=(3,)).tolist() == drawn


def test_only_completed_changes_are_kept_and_two_of_them(protection: Protection) -> None:
    tree = {"w": mx.zeros(2)}
    protection.protect({"tree": tree})
    mx.eval(mx.ones(3))  # nothing of what is protected
    assert protection.counts() == [1]
    tree["w"] = tree["w"] + 1
    protection.commit()
    assert protection.counts() == [1], "not evaluated yet"
    for _ in range(3):
        tree["w"] = tree["w"] + 1
        mx.eval(tree)
    assert protection.counts() == [3, 4]
    protection.put_back(3)
    assert tree["w"].tolist() == [3.0, 3.0] and protection.counts() == [3]
    with pytest.raises(KeyError):
        protection.put_back(1)


def test_the_last_kept_values_get_a_number_that_all_ranks_agree_on(protection: Protection) -> None:
    tree = {"w": mx.zeros(2)}
    protection.protect({"tree": tree})
    for _ in range(2):
        tree["w"] = tree["w"] + 1
        mx.eval(tree)
    protection.number(7)
    assert protection.counts() == [7]
    tree["w"] = tree["w"] + 1
    mx.eval(tree)
    assert protection.counts() == [7, 8]
    protection.put_back(7)
    assert tree["w"].tolist() == [2.0, 2.0]


def test_what_cannot_be_protected_is_named(protection: Protection) -> None:
    with pytest.raises(UsageError, match="protect: thing is a set; it takes modules"):
        protection.protect({"thing": {1}})
    assert protection.trees == {}


def test_what_would_protect_something_else_is_refused(protection: Protection) -> None:
    endless: list[Any] = [mx.ones(2)]
    endless.append(endless)
    twice = [mx.ones(2)]
    protection.namespace = {"model": nn.Linear(2, 2), "step": 3, "endless": endless}
    for trees, said in [
        ({}, "nothing is named"),
        ({"endless": endless}, "endless holds itself"),
        ({"model": 5}, "model is a Linear and not what was given"),
        ({"model": None}, "model is a Linear and not what was given"),
        ({"step": 4}, "step is a int and not what was given"),
    ]:
        with pytest.raises(UsageError, match=said):
            protection.protect(trees)
    protection.protect({"step": 3, "pair": [twice, twice], "new": mx.ones(1)})
