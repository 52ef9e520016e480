"""After a capture everything is what it was before, whatever the captured program does."""

from __future__ import annotations

import signal
import sys
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.core import eval as evaluate_now
from mlx.utils import tree_flatten

from mlxbench_kernel import native
from mlxbench_kernel.graph import Graph, capture, capture_expression
from mlxbench_kernel.graph.guard import ReadError, guarded
from mlxbench_kernel.interrupts import shielded

Run = Callable[[], list[float]]


class Network(nn.Module):
    """Dropout draws from the random state, BatchNorm has statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 8), nn.BatchNorm(8), nn.Dropout(0.5), nn.Linear(8, 1)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


def make_training(compiled: bool) -> tuple[Callable[[mx.array], mx.array], nn.Module, Any]:
    """A step of which nothing but its closure holds model and optimizer."""
    mx.random.seed(3)
    model = Network()
    optimizer = optim.Adam(optim.cosine_decay(1e-1, 10))  # without state until its first update
    mx.eval(model.parameters())
    state = [model.state, optimizer.state, mx.random.state]

    def step(x: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, lambda x: (model(x) ** 2).mean())(x)
        optimizer.update(model, gradients)
        return loss

    function = mx.compile(step, inputs=state, outputs=state) if compiled else step
    return function, model, optimizer


def losses(step: Callable[[mx.array], mx.array], times: int = 4) -> list[float]:
    return [step(mx.full((6, 4), 1.0 + n)).item() for n in range(times)]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("trained", [0, 2])
def test_training_goes_on_as_if_nobody_had_looked(compiled: bool, trained: int) -> None:
    step, *_ = make_training(compiled)
    expected = losses(step, trained) + losses(step)
    step, *_ = make_training(compiled)
    found = losses(step, trained)
    capture(step, mx.ones((6, 4)))
    capture(step, mx.ones((3, 4)))
    assert found + losses(step) == expected


def test_values_that_a_capture_put_back_are_not_in_a_trace() -> None:
    settings = {"scale": 2.0}

    @mx.compile
    def scaled(x: mx.array) -> mx.array:
        return x * settings["scale"]

    def call(x: mx.array) -> mx.array:
        settings["scale"] = 5.0
        return scaled(x)

    capture(call, mx.ones(2))
    assert scaled(mx.ones(2)).tolist() == [2.0, 2.0]


def namespace_of(step: Callable[..., Any], **names: Any) -> dict[str, Any]:
    return {"step": step, "x": mx.ones((6, 4)), "mx": mx, **names}


def captured(text: str, namespace: dict[str, Any]) -> Graph:
    return capture_expression(text, lambda code: eval(code, namespace), namespace).graph


class Trainer:
    def __init__(self) -> None:
        self.step, self.model, self.optimizer = make_training(False)

    def train(self, x: mx.array) -> mx.array:
        return self.step(x)


def as_module(step: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType("training")
    module.step = step  # type: ignore[attr-defined]
    return module


EXPRESSIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "step(x)": dict,
    "step(x) * 2": dict,
    "(step(x), step(x + 1))[0]": dict,
    "training.step(x)": dict,
    "mx.mean(step(x))": dict,
    "partial(step, x)()": lambda: {"partial": partial},
    "mx.eval(step(x))": dict,
    "bound(x)": dict,
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_no_expression_trains_what_the_namespace_does_not_hold(text: str) -> None:
    step, model, optimizer = make_training(False)
    holder = Trainer()
    names = {"training": as_module(step), "bound": holder.train, **EXPRESSIONS[text]()}
    trained = [(model, optimizer), (holder.model, holder.optimizer)]

    def state() -> list[Any]:
        trees = [[model.state, optimizer.state] for model, optimizer in trained]
        return [(path, id(array)) for path, array in tree_flatten(trees)]

    before = state()
    namespace = namespace_of(step, **names)
    graph = captured(text, namespace)
    assert graph.nodes > 50 and graph.title == text
    assert state() == before
    assert set(namespace) == {*names, "step", "x", "mx", "__builtins__"}


@pytest.mark.parametrize("text", ["y.item()", "float(mx.sum(y))", "[each.item() for each in [y]]"])
def test_an_expression_that_reads_a_value_is_named(text: str) -> None:
    y = mx.exp(mx.ones(1))
    with pytest.raises(ReadError) as raised:
        captured(text, {"mx": mx, "y": y})
    assert str(raised.value).startswith(f"%mlx_graph {text}")
    if native.load() is not None:
        assert native.load().is_lazy(y)  # type: ignore[union-attr]


def test_what_is_given_to_eval_in_an_expression_is_shown() -> None:
    y = mx.exp(mx.ones(1))
    assert captured("mx.eval(y)", {"mx": mx, "y": y}).nodes >= 2


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = mx.ones(1)


class Counting:
    made = 0
    last: mx.array | None = None


def counted(x: mx.array, seen: list[int] = []) -> mx.array:  # noqa: B006
    seen.append(1)
    counted.times += 1  # type: ignore[attr-defined]
    return x * len(seen)


counted.times = 0  # type: ignore[attr-defined]


def test_containers_of_all_kinds_are_put_back() -> None:
    ordered = OrderedDict(a=1, b=2, c=3)
    plain, queue, found, slotted = {"a": 1, "b": 2}, deque([1, 2], maxlen=2), {1, 2}, Slotted()
    numbers, space = [0.0] * 1000, types.SimpleNamespace(count=0)
    outside = 0

    def messy(x: mx.array) -> mx.array:
        nonlocal outside
        outside += 1
        ordered.move_to_end("a")
        del ordered["b"]
        ordered["d"] = 4
        plain["b2"] = plain.pop("a")
        queue.append(3)
        found.add(3)
        numbers.append(1.0)
        slotted.value = slotted.value + x
        space.count += 1
        Counting.made += 1
        Counting.last = x
        return counted(x) + slotted.value

    value = slotted.value
    capture(messy, mx.ones(1))
    assert list(ordered.items()) == [("a", 1), ("b", 2), ("c", 3)]
    ordered.move_to_end("a")
    assert list(ordered) == ["b", "c", "a"], "its order is its own"
    assert list(plain.items()) == [("a", 1), ("b", 2)]
    assert list(queue) == [1, 2] and found == {1, 2} and len(numbers) == 1000
    assert slotted.value is value and space.count == 0 and outside == 0
    assert (Counting.made, Counting.last) == (0, None)
    assert counted.times == 0 and counted.__defaults__ == ([],)  # type: ignore[attr-defined]


def test_frozen_modules_stay_frozen_or_not() -> None:
    model = Network()
    model.layers[0].freeze()

    def step(x: mx.array) -> mx.array:
        model.freeze()
        model.layers[0].unfreeze()
        model.eval()
        return model(x)

    before = [path for path, _ in tree_flatten(model.trainable_parameters())]
    capture(step, mx.ones((2, 4)))
    assert [path for path, _ in tree_flatten(model.trainable_parameters())] == before
    assert model.training


def test_other_names_of_eval_and_functions_that_save_do_not_evaluate(tmp_path: Path) -> None:
    x = mx.exp(mx.ones(3))
    graph = capture(lambda x: evaluate_now(x * 2), x)
    assert graph.nodes >= 3
    for save in (
        lambda y: mx.save(tmp_path / "a.npy", y),
        lambda y: mx.savez(tmp_path / "a.npz", y=y),
        lambda y: mx.save_safetensors(tmp_path / "a.safetensors", {"y": y}),
    ):
        with pytest.raises(ReadError, match="save"):
            capture(save, x)
    assert list(tmp_path.iterdir()) == []
    done = mx.ones(2)
    evaluate_now(done)
    capture(lambda y: (mx.save(str(tmp_path / "b.npy"), done), y * 2)[1], x)
    assert (tmp_path / "b.npy").exists()


def test_other_threads_evaluate_and_read_meanwhile() -> None:
    inside, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def other() -> None:
        inside.wait(10)
        y = mx.exp(mx.ones(2))
        mx.eval(y)
        with pytest.raises(ValueError, match="not"):
            raise ValueError("not refused")
        found.extend([y.sum().item(), np.array(y * 2).shape, str(y.dtype)])
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def slow(x: mx.array) -> mx.array:
        inside.set()
        done.wait(10)
        return x * 2

    capture(slow, mx.ones(2))
    thread.join()
    assert found[0] == pytest.approx(2 * np.e) and found[1:] == [(2,), "mlx.core.float32"]


def test_an_interrupt_at_any_moment_leaves_everything_as_it_was() -> None:
    """A Ctrl-C after each of a hundred steps of the interpreter's, all through a capture."""
    step, model, optimizer = make_training(True)
    x = mx.ones((6, 4))
    methods = {name: vars(mx.array)[name] for name in ("item", "tolist", "__bool__")}
    functions = mx.eval, mx.async_eval, mx.compile, nn.Linear.__call__, optim.Adam.update
    before = [id(a) for _, a in tree_flatten([model.state, optimizer.state])]
    stopped = 0
    for calls in range(0, 4000, 37):
        left = calls

        def count(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)

        sys.setprofile(count)
        try:
            capture(step, x)
        except KeyboardInterrupt:
            stopped += 1
        finally:
            sys.setprofile(None)
        now = mx.eval, mx.async_eval, mx.compile, nn.Linear.__call__, optim.Adam.update
        assert now == functions
        assert {name: vars(mx.array)[name] for name in methods} == methods
        assert [id(a) for _, a in tree_flatten([model.state, optimizer.state])] == before
        y = mx.exp(mx.ones(2))
        mx.eval(y)
        assert y.sum().item() > 0
    assert stopped > 10
    found = losses(step)
    step, *_ = make_training(True)
    assert found == losses(step)


def test_an_interrupt_while_contexts_are_left_waits_for_them() -> None:
    left: list[str] = []

    class Slow:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            signal.raise_signal(signal.SIGINT)
            left.append("left")

    with pytest.raises(KeyboardInterrupt), shielded(Slow(), Slow()):
        pass
    assert left == ["left", "left"]


def test_without_a_compiler_random_state_and_reads_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "load", lambda: None)
    mx.random.seed(5)
    known = mx.ones(1)
    mx.eval(known)
    compiled = mx.compile(lambda x: mx.exp(x) * mx.random.uniform() * known.item())
    capture(compiled, known)
    found = mx.random.uniform().item()
    mx.random.seed(5)
    assert found == mx.random.uniform().item()
    with pytest.raises(ReadError), guarded():
        mx.exp(known).item()


def test_large_data_of_the_notebook_is_not_looked_through_one_by_one() -> None:
    big = {"numbers": [0.5] * 300_000, "rows": [(1, 2)] * 10, "last": mx.ones(1)}
    y = mx.exp(big["last"])  # type: ignore[arg-type]
    graph = capture(y, namespace={"big": big, "y": y})
    assert "big.last" in graph.names.values()
    many = [{"value": mx.array(n)} for n in range(5)]
    padding = [[None, object()] for _ in range(210_000)]
    z = many[-1]["value"] + 1
    graph = capture(z, namespace={"all": [padding, many]})
    assert any(name == "all[1][4].value" for name in graph.names.values())
