"""Names that are refused until they are assigned again."""

from __future__ import annotations

import ast
import collections
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from needs import require

from mlxbench_kernel import native
from mlxbench_kernel.rank.protection import Protection
from mlxbench_kernel.rank.stale import StaleError, StaleNames

DEFINITIONS = """
import functools
def uses(): return model + 1
def deeper(): return uses()
def inside():
    def inner(): return model
    return inner
def local():
    model = 1
    return model
def default(x=3): return x
def wrapping(function): return lambda: function()
closed = wrapping(uses)
partly = functools.partial(uses)
compiled = mx.compile(uses)
cached = functools.lru_cache(uses)
class Net:
    def step(self): return model
net = Net()
bound = net.step
table = {"forward": uses}
"""


@pytest.fixture
def stale() -> StaleNames:
    namespace: dict[str, Any] = {
        "__name__": "__main__",  # as in a kernel
        "mx": mx,
        "functools": functools,
        "contextlib": contextlib,
        "model": mx.ones(2),
        "other": 1,
    }
    exec(DEFINITIONS, namespace)
    stale = StaleNames(namespace)
    stale.refuse(["model", "is not there"], "rank 1 raised ValueError")
    return stale


@pytest.mark.parametrize(
    "code",
    [
        "model",
        "model = model + 1",
        "x = 1; model.weight = x",
        "model += 1",
        "for x in [1]:\n    y = model",
        "[model for x in y]",
        "print(f'{model}')",
        "def f(): return model",
        "lambda: model",
        "uses()",
        "deeper()",
        "inside()",
        "closed()",
        "partly()",
        "compiled()",
        "cached()",
        "bound()",
        "net.step()",
        "Net().step()",
        "table['forward']()",
        "del model.weight",
        "await model",
        "uses()\nmodel = 1",
        "model = 1 if model is None else 2",
        "other = model\nmodel = other",
        "if False:\n    model = 1\nprint(model)",
        "for x in []:\n    model = 1\nuses()",
    ],
)
def test_what_would_read_it_is_refused(stale: StaleNames, code: str) -> None:
    with pytest.raises(StaleError, match="model may be half changed: rank 1 raised ValueError"):
        stale.visit(ast.parse(code))
    assert list(stale.reasons) == ["model"]


@pytest.mark.parametrize(
    "code",
    ["other", "local()", "default()", "x.model", "f(model=1)", "pass", "if other:\n    model = 1"],
)
def test_what_does_not_read_it_runs_and_it_stays_refused(stale: StaleNames, code: str) -> None:
    stale.visit(ast.parse(code))
    assert list(stale.reasons) == ["model"]


@pytest.mark.parametrize(
    "code",
    [
        "model = 1",
        "model = 1\nmodel + 1",
        "model = 1\nuses()",
        "model = 1\ncompiled(); deeper()",
        "model = 1\ndef f(): return model",
        "for model in [1]:\n    model",
        "if other:\n    model = 1; model",
        "import math as model",
        "def model(): pass",
        "class model: pass",
        "model, x = 1, 2",
        "model = model",
        "model = model\nprint(model)",
        "with contextlib.nullcontext() as model: pass",
    ],
)
def test_assigning_it_accepts_it(stale: StaleNames, code: str) -> None:
    stale.visit(ast.parse(code))
    exec(code, stale.namespace)
    assert stale.reasons == {}
    stale.visit(ast.parse("model"))


def test_a_cell_that_fails_before_it_assigns_accepts_nothing(stale: StaleNames) -> None:
    stale.visit(ast.parse("1 / 0\nmodel = 1"))
    with pytest.raises(StaleError):
        stale.visit(ast.parse("model"))


def test_several_names_are_told_at_once(stale: StaleNames) -> None:
    stale.refuse(["other"], "interrupted")
    with pytest.raises(StaleError, match=r"model, other may be half changed.*Assign them again"):
        stale.visit(ast.parse("other, model"))
    stale.namespace["other"] = 3
    assert list(stale.reasons) == ["model"]


def test_arrays_are_found_wherever_the_user_keeps_them() -> None:
    class Slotted:
        __slots__ = ("held",)

        def __init__(self, held: mx.array) -> None:
            self.held = held

    def count() -> Iterator[mx.array]:
        value = mx.ones(1)
        while True:
            value = value + 1
            yield value

    Slotted.__module__ = "__main__"
    counting = count()
    next(counting)
    namespace: dict[str, Any] = {
        "_under": mx.ones(1) + 1,
        "tokens": list(range(200_000)),
        "deep": [{"a": (mx.ones(1) + 1,)}],
        "queue": collections.deque([mx.ones(1) + 1]),
        "slotted": Slotted(mx.ones(1) + 1),
        "partly": functools.partial(print, mx.ones(1) + 1),
        "counting": counting,
        "_3": mx.ones(1) + 1,
        "_": mx.ones(1) + 1,
    }
    require(native.load() is not None, f"no native module: {native.reason()}")
    stale = StaleNames(namespace)
    assert stale.find({}) == []
    # As after an evaluation that was broken off: marked as evaluated, and never looked at.
    mx.eval([v for k, v in namespace.items() if isinstance(v, mx.array)])
    mx.eval(namespace["deep"], list(namespace["queue"]), namespace["slotted"].held)
    mx.eval(namespace["partly"].args, counting.gi_frame.f_locals["value"])
    expected = ["_under", "counting", "deep", "partly", "queue", "slotted"]
    assert stale.find({}) == expected
    stale.settle({})
    assert stale.find({}) == []


def test_what_is_ours_is_not_walked_through() -> None:
    require(native.load() is not None, f"no native module: {native.reason()}")
    stepper = Protection()  # as a class of ours; it holds hundreds of states
    stepper.trees["kept"] = lost = mx.ones(2) + 1
    mx.eval(lost)  # never looked at since
    assert StaleNames({"stepper": stepper}).find({}) == []
    assert StaleNames({"mine": [lost]}).find({}) == ["mine"]
