"""Steps that are built while the one before them runs: nobody but the clock can tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import Stepper
from mlxbench_kernel.training.building import Builder, Built

pytestmark = pytest.mark.usefixtures("nothing_protected")

Batch = Callable[[int], Any]
Run = tuple[list[float], dict[str, Any]]  # losses, and all that a next step depends on


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU, and however long batches take here; some steps have to be built ahead."""
    monkeypatch.setattr("mlxbench_kernel.training.building.helps", lambda: True)
    monkeypatch.setattr("mlxbench_kernel.training.loop.DATA_SHARE", 1000.0)
    monkeypatch.setattr("mlxbench_kernel.training.loop.WORTH", -1.0)
    taken = []
    put_in_place = Builder.build

    def build(self: Builder, *arguments: Any) -> Built:
        built = put_in_place(self, *arguments)
        taken.append(built.was_ahead)
        return built

    monkeypatch.setattr(Builder, "build", build)
    yield
    assert any(taken)


def inputs(number: int) -> mx.array:
    return mx.random.normal((64, 32), key=mx.random.key(number))


def stepper(batch: Batch = inputs, **options: Any) -> Stepper:
    mx.random.seed(3)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 1))
    optimizer = optim.AdamW(optim.cosine_decay(1e-2, 40))
    return Stepper(model, optimizer, lambda model, x: model(x).square().mean(), batch, **options)


def losses(run: Stepper) -> list[float]:
    found: list[float] = run.history.series("main", "loss", 1000)[1].tolist()
    return found


def told(run: Stepper) -> Run:
    trees: Any = tree_flatten([run.modules["model"].parameters(), run.trees["optimizer"].state])
    found = {name: np.array(array) for name, array in trees}
    return losses(run), found | {"random": np.array(frozen.random_key()), "step": run.step}


def usual(monkeypatch: pytest.MonkeyPatch, steps: int, **options: Any) -> Run:
    """The same run with each step built in its turn."""
    with monkeypatch.context() as patch:
        patch.setattr("mlxbench_kernel.training.building.helps", lambda: False)
        run = stepper(**options)
        run.run(steps)
    return told(run)


def same(one: Run, other: Run) -> bool:
    return one[0] == other[0] and all(
        np.array_equal(one[1][name], other[1][name]) for name in one[1].keys() | other[1].keys()
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("lease", [0, 1000])
def test_the_same_bits(
    ahead: None, monkeypatch: pytest.MonkeyPatch, compiled: bool, lease: float
) -> None:
    monkeypatch.setattr("mlxbench_kernel.training.loop.LEASE_SECONDS", lease)
    run = stepper(compile=compiled)
    run.run(30)
    assert same(told(run), usual(monkeypatch, 30, compile=compiled))
    run.back(7)
    assert run.step == 23
    run.run(7)
    assert same(told(run), usual(monkeypatch, 30, compile=compiled))


def early(numbers: list[int], run: list[Stepper]) -> Batch:
    """Batches that note those which are made before the step before them is complete."""

    def batch(number: int) -> mx.array:
        if run and run[0].step < number:
            numbers.append(number)
        return inputs(number)

    return batch


def test_batches_are_made_while_the_step_before_runs(ahead: None) -> None:
    numbers: list[int] = []
    runs: list[Stepper] = []
    runs.append(stepper(early(numbers, runs)))
    runs[0].run(20)
    assert numbers == list(range(2, 20)), "no first one, and none that nobody asked for"


@pytest.mark.parametrize("worth", [0.0, 1e9])
def test_it_is_done_where_the_device_works_on_for_long_enough(
    monkeypatch: pytest.MonkeyPatch, worth: float
) -> None:
    monkeypatch.setattr("mlxbench_kernel.training.building.helps", lambda: True)
    monkeypatch.setattr("mlxbench_kernel.training.loop.DATA_SHARE", 1000.0)
    monkeypatch.setattr("mlxbench_kernel.training.loop.LEASE_SECONDS", 0.0)
    monkeypatch.setattr("mlxbench_kernel.training.loop.WORTH", worth)
    numbers: list[int] = []
    runs: list[Stepper] = []
    runs.append(stepper(early(numbers, runs)))
    runs[0].run(20)
    # What is known after five steps the others are told with the sixth or the one after.
    assert numbers == ([] if worth else list(range(numbers[0], 20)))
    assert not numbers or 5 < numbers[0] < 9


def test_slow_batches_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxbench_kernel.training.building.helps", lambda: True)
    numbers: list[int] = []
    runs: list[Stepper] = []
    quick = early(numbers, runs)

    def slow(number: int) -> mx.array:
        time.sleep(0.03)
        return quick(number)

    runs.append(stepper(slow))
    runs[0].run(10)
    assert not numbers
    assert runs[0].history.last("main")["data_seconds"] > 0.029


def test_a_batch_that_is_slow_for_once_counts_where_it_was_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlxbench_kernel.training.building.helps", lambda: True)
    monkeypatch.setattr("mlxbench_kernel.training.loop.DATA_SHARE", 0.5)
    monkeypatch.setattr("mlxbench_kernel.training.loop.WORTH", -1.0)
    numbers: list[int] = []
    runs: list[Stepper] = []
    quick = early(numbers, runs)

    def batch(number: int) -> mx.array:
        time.sleep(0.2 if number == 12 else 0.0)
        return quick(number)

    runs.append(stepper(batch))
    runs[0].run(16)
    assert 12 in numbers
    data, compute = (
        runs[0].history.series("main", f"{what}_seconds", 100)[1] for what in ("data", "compute")
    )
    assert data[11] >= 0.2 > data[12] and (compute >= 0).all(), "of the step before it"


def test_nobody_sees_what_is_built_ahead(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stepper()
    seen = []
    extend = run.history.extend

    def extended(*arguments: Any) -> None:
        extend(*arguments)
        live = PROTECTION.kept[-1].parts["stepper"][1][1]
        seen.append(frozen.freeze(run._roots) is not None and live == run.counters)

    monkeypatch.setattr(run.history, "extend", extended)
    run.run(until="step == 20")
    assert seen == [True] * 20


def test_what_breaks_the_step_that_was_begun_is_raised(
    ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch(number: int) -> mx.array:
        if number == 9:
            monkeypatch.setattr(type(GROUP), "intact", False)
            raise RuntimeError("rank 1 is gone")
        return inputs(number)

    run = stepper(batch)
    with pytest.raises(RuntimeError, match="rank 1 is gone"):
        run.run(20)
    assert run.step == 8


def test_it_stops_where_a_condition_holds(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stepper()
    run.run(until="step == 12")
    assert same(told(run), usual(monkeypatch, 12))
    assert frozen.freeze(run._roots) is not None, "all of it is evaluated"
    run.run(5)
    assert same(told(run), usual(monkeypatch, 17))


def test_a_pause_leaves_nothing_of_the_step_after(
    ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Stepper] = []

    def batch(number: int) -> mx.array:
        if number == 9 and asked:
            asked[0].stop()
        return inputs(number)

    asked.append(stepper(batch))
    assert asked[0].run(200).kind == "paused"
    assert same(told(asked[0]), usual(monkeypatch, asked[0].step))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_comes_when_it_is_its_turn(
    ahead: None, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    wrong = [True]

    def batch(number: int) -> mx.array:
        if number == 9 and wrong[0]:
            wrong[0] = error is ValueError  # that is one until it is mended
            raise error("here")
        return inputs(number)

    run = stepper(batch)
    with pytest.raises(error, match="here"):
        run.run(20)
    assert run.step == 9
    wrong[0] = False
    run.run(11)
    assert same(told(run), usual(monkeypatch, 20))


def test_another_rate_counts_from_the_next_step_on(
    ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for helps in (True, False):
        monkeypatch.setattr("mlxbench_kernel.training.building.helps", lambda helps=helps: helps)
        run = stepper()
        run.run(5)
        run.set(weight_decay=0.5)
        run.run(5)
        runs.append(told(run))
    assert same(*runs)
