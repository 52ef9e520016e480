"""A training run that is stepped forwards and back, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import Stepper
from mlxbench_kernel.training.draws import key_of

Pair = tuple[mx.array, mx.array]


pytestmark = pytest.mark.usefixtures("nothing_protected")


def batches(count: int = 60, size: int = 8) -> list[Pair]:
    key = mx.random.key(7)
    x = mx.random.normal((count, size, 8), key=key)
    y = mx.random.randint(0, 3, (count, size), key=key)
    return [(x[i], y[i]) for i in range(count)]


def loss_fn(model: nn.Module, x: mx.array, y: mx.array) -> Any:
    logits = model(x)
    accuracy = (logits.argmax(-1) == y).mean()
    return nn.losses.cross_entropy(logits, y).mean(), {"accuracy": accuracy}


def network() -> nn.Sequential:
    mx.random.seed(3)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )


def stepper(optimizer: optim.Optimizer | None = None, **options: Any) -> Stepper:
    options.setdefault("batches", batches())
    return Stepper(network(), optimizer or optim.Adam(1e-2), loss_fn, **options)


def losses(run: Stepper, branch: str = "main") -> list[float]:
    found: list[float] = run.history.series(branch, "loss", 100_000)[1].tolist()
    return found


def weights(model: nn.Module) -> dict[str, Any]:
    flat: Any = tree_flatten(model.parameters())
    return {name: np.array(array) for name, array in flat}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where steps are short, however slow they are here."""
    for name in ("loop.LEASE_SECONDS", "keeping.SECONDS", "keeping.SHORT"):
        monkeypatch.setattr(f"mlxbench_kernel.training.{name}", 1000.0)


@pytest.mark.parametrize("compiled", [False, True])
def test_it_computes_what_the_loop_by_hand_computes(compiled: bool) -> None:
    run = stepper(compile=compiled, check=False)
    run.run(5)
    model, optimizer = network(), optim.Adam(1e-2)
    value_and_grad = nn.value_and_grad(model, lambda *batch: loss_fn(model, *batch)[0])
    by_hand = []
    for batch in batches()[:5]:
        loss, gradients = value_and_grad(*batch)
        optimizer.update(model, gradients)
        mx.eval(loss, model.state, optimizer.state, mx.random.state)
        by_hand.append(loss.item())
    assert losses(run) == pytest.approx(by_hand, rel=1e-5)


def test_what_batches_evaluate_does_not_count_as_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    few_are_kept(monkeypatch)
    given = batches()
    seen = []

    def batch(number: int) -> Pair:
        before = PROTECTION.counts()
        mx.eval(given[number][0] + 1)
        seen.append(PROTECTION.counts() == before)
        return given[number]

    stepper(batches=batch).run(60)
    assert all(seen) and len(seen) >= 60


@pytest.mark.parametrize("compiled", [False, True])
def test_back_and_forward_gives_the_same_bits(compiled: bool) -> None:
    rate = optim.cosine_decay(1e-2, 50)
    run = stepper(optim.AdamW(rate, weight_decay=0.1), compile=compiled)
    run.run(20)
    first, at_20 = losses(run), weights(run.modules["model"])
    assert run.back(13) < 16 and run.step == 7
    assert [run.advance().record["loss"] for _ in range(13)] == first[7:]
    assert same(weights(run.modules["model"]), at_20)
    assert losses(run) == first


def test_of_short_steps_a_few_are_kept_but_the_last_ones_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_are_kept(monkeypatch)

    def batch(number: int) -> Pair:
        if number == 150:
            run.stop()
        return given[number % len(given)]

    given = batches()
    run = stepper(batches=batch)
    run.run(100)
    kept = [step for step in range(101) if run.kept_at(step)]
    assert len(kept) < 25 and kept[-8:] == list(range(93, 101))
    assert "paused after step" in str(run.run(1000)) and 150 <= run.step < 200
    assert run.back() == 0, "that one is kept too"
    first, here = losses(run), run.step
    run.back(30)
    assert [run.advance().record["loss"] for _ in range(30)] == first[here - 30 : here]


@pytest.mark.parametrize("where", [65, 77, 97])  # two are ends of leases
def test_at_a_breakpoint_the_step_before_is_kept(
    monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    few_are_kept(monkeypatch)
    run = stepper(batches=lambda number: given[number % len(given)])
    given = batches()
    run.break_at(f"step == {where}")
    stop = run.run(200)
    assert (stop.kind, stop.step, run.step) == ("breakpoint", where, where)
    assert run.branches.current.tip == where and not run.kept_at(where).pinned
    assert run.kept_at(where - 1)
    assert run.back() == 0
    first = losses(run)
    run.no_break(f"step == {where}")
    run.run(101 - where)
    usual = stepper(batches=lambda number: given[number % len(given)])
    usual.run(100)
    assert losses(run) == losses(usual) and first == losses(usual)[:where]


def test_no_step_is_missing_after_an_interrupt_at_a_breakpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_are_kept(monkeypatch)
    given = batches()
    run = stepper(batches=lambda number: given[number % len(given)])
    run.break_at("step == 77")
    go = run.to

    def interrupted(step: int) -> int:
        if step == 77:
            raise KeyboardInterrupt
        return go(step)

    monkeypatch.setattr(run, "to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run(200)
    monkeypatch.setattr(run, "to", go)
    run.no_break("step == 77")
    run.run(40)
    usual = stepper(batches=lambda number: given[number % len(given)])
    usual.run(run.step)
    assert losses(run) == losses(usual)


@pytest.mark.parametrize("iterator", [False, True])
def test_at_a_breakpoint_no_long_way_is_gone(
    monkeypatch: pytest.MonkeyPatch, iterator: bool
) -> None:
    few_are_kept(monkeypatch)
    taken: list[int] = []
    given = batches()

    def batch(number: int) -> Pair:
        taken.append(number)
        return given[number % len(given)]

    source = (given[number % len(given)] for number in range(1000)) if iterator else batch
    run = stepper(batches=source, budget=0)
    monkeypatch.setattr(run.snapshots, "_spill", lambda _: False)
    run.break_at("step == 577")
    stop = run.run(1000)
    assert (stop.kind, stop.step, run.step) == ("breakpoint", 577, 577)
    assert len(taken) < 577 + 150, "what was taken twice"


def test_what_a_fault_undoes_is_not_in_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    few_are_kept(monkeypatch)
    given = batches()
    run = stepper(batches=lambda number: given[number % len(given)])
    run.run(1)
    record = run._record
    counts: list[int] = []

    def broken(taken: Any) -> None:
        record(taken)
        if run.step < 20:
            return
        counts.append(PROTECTION.counts()[-1])
        raise RuntimeError("a rank is gone")

    monkeypatch.setattr(run, "_record", broken)
    with pytest.raises(RuntimeError, match="gone"):
        run.run(200)
    monkeypatch.setattr(run, "_record", record)
    PROTECTION.put_back(counts[0])
    assert run.step < len(losses(run)), "the last states were not kept"
    monkeypatch.setattr(run, "_run_lease", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run(1)
    monkeypatch.undo()
    assert len(losses(run)) == run.step, "before a step is taken"
    run.run(1)
    usual = stepper(batches=lambda number: given[number % len(given)])
    usual.run(run.step)
    assert losses(usual) == losses(run)


def test_a_step_that_is_not_kept_is_taken_again() -> None:
    run = stepper(budget=40_000)
    run.run(50)
    kept = {each.step for each in run.snapshots.all()}
    assert 0 in kept and 50 in kept and len(kept) < 40
    missing = next(step for step in range(30, 0, -1) if step not in kept)
    first = losses(run)
    assert run.to(missing) > 0 and run.step == missing
    assert run.advance().record["loss"] == first[missing]


def test_states_are_written_to_disk_when_memory_is_short() -> None:
    run = stepper(budget=10_000)
    run.run(40)
    on_disk = [each for each in run.snapshots.all() if each.file is not None]
    assert on_disk and run.snapshots.used <= 10_000
    first, step = losses(run), on_disk[-1].step
    run.to(step)
    assert run.advance().record["loss"] == first[step]
    files = [each.file for each in on_disk if each.file is not None]
    run.snapshots.close()
    assert not any(file.exists() for file in files)


def test_a_full_disk_costs_kept_states_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: str, arrays: Any) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("[write] Unable to write 47221556 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", full)
    run = stepper(budget=10_000)
    run.run(40)
    assert run.step == 40 and run.snapshots.used <= 10_000
    assert not any(each.file for each in run.snapshots.all())
    assert run.snapshots._folder is not None and not [*run.snapshots._folder.iterdir()]
    assert run.to(20) >= 0
    run.snapshots.close()


def test_kept_states_share_what_no_step_changes() -> None:
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 1))
    model.layers[0].freeze()
    data = [(mx.ones((1, 300)), mx.zeros((1, 1))) for _ in range(10)]
    run = Stepper(model, optim.SGD(0.1), lambda m, x, y: (m(x) - y).square().mean(), data)
    run.run(10)
    assert 0 < run.snapshots.used < 10 * 2 * 301 * 4 * 2


def test_an_array_changed_in_place_does_not_change_what_is_kept() -> None:
    run = stepper()
    run.run(3)
    before = weights(run.modules["model"])
    run.modules["model"].layers[0].bias[0] = 100.0  # type: ignore[attr-defined]
    run.to(3)
    assert same(weights(run.modules["model"]), before)


def test_gradients_are_accumulated() -> None:
    data = batches(20)
    run = stepper(optim.SGD(0.1), batches=data, accumulate=4, check=False)
    run.run(2)
    model = network()
    optimizer = optim.SGD(0.1)
    value_and_grad = nn.value_and_grad(model, lambda *batch: loss_fn(model, *batch)[0])
    for step in range(2):
        total = None
        for batch in data[4 * step : 4 * step + 4]:
            _, gradients = value_and_grad(*batch)
            total = gradients if total is None else tree_map(mx.add, total, gradients)
        optimizer.update(model, tree_map(lambda each: each / 4, total))
        mx.eval(model.state)
    for name, array in weights(model).items():
        np.testing.assert_allclose(weights(run.modules["model"])[name], array, atol=1e-5)
    assert run.run().text.startswith("step 5: out of batches")


def test_an_edit_in_the_past_begins_a_branch() -> None:
    run = stepper()
    run.run(20)
    run.back(10)
    run.set(learning_rate=0.5)
    run.run(10)
    assert [(b.name, b.parent, b.start, b.tip) for b in run.branches] == [
        ("main", "", 0, 20), ("branch-2", "main", 10, 20),
    ]  # fmt: skip
    other = losses(run, "branch-2")
    assert len(other) == 10 and other != losses(run)[10:]
    name, apart = run.compare("main", "branch-2")[0]
    assert apart > 0 and name in weights(run.modules["model"])
    assert run.branches.current.name == "branch-2" and run.step == 20
    run.switch("main")
    assert run.settings.values()["learning_rate"] == pytest.approx(0.01)
    run.delete("branch-2")
    assert [b.name for b in run.branches] == ["main"] and not losses(run, "branch-2")


@pytest.mark.parametrize("compiled", [False, True])
def test_the_momentum_of_adam_is_a_setting(compiled: bool) -> None:
    optimizer = optim.AdamW(0.01, betas=[0.8, 0.99])
    run = stepper(optimizer, compile=compiled)
    assert (run.settings.values()["beta1"], run.settings.values()["beta2"]) == (0.8, 0.99)
    run.run(4)
    run.set(beta1=0.5)
    run.run(4)
    first = losses(run)
    assert optimizer.betas == [0.5, 0.99]
    run.back(6)
    assert optimizer.betas == [0.8, 0.99]
    assert [run.advance().record["loss"] for _ in range(6)] == first[2:]
    with pytest.raises(UsageError, match=r"beta1 cannot be 1\.5: it is between 0 and 1"):
        run.set(beta1=1.5)


def test_edits_are_made_again_on_the_way() -> None:
    run = stepper(optim.SGD(0.1, momentum=0.9))
    run.run(5)
    run.set(momentum=0.5, learning_rate=0.05, clip=0.1)
    run.run(5)
    run.freeze("layers.4")
    run.run(5)
    first, end = losses(run), weights(run.modules["model"])
    run.to(0)
    assert run.settings.values()["momentum"] == pytest.approx(0.9)
    assert [run.advance().record["loss"] for _ in range(15)] == first
    assert same(weights(run.modules["model"]), end) and run.frozen == ["layers.4"]


def test_an_edit_that_cannot_be_made_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise UsageError("other arrays on rank 1")

    run = stepper()
    run.run(2)
    monkeypatch.setattr("mlxbench_kernel.training.course.copy_from", refused)
    with pytest.raises(UsageError, match="other arrays on rank 1"):
        run.equalize(0)
    assert not run.branches.current.edits
    assert run.run(1).step == 3


def test_another_order_of_batches_is_a_branch_too() -> None:
    run = stepper()
    run.run(10)
    run.to(0)
    run.set(shuffle=5)
    run.run(10)
    assert losses(run, "branch-2") != losses(run)
    run.back(5)
    assert run.advance().record["loss"] == losses(run, "branch-2")[5]


def test_it_runs_until_a_condition_holds() -> None:
    run = stepper(batches=lambda number: batches()[number % 60])
    stop = run.run(until="step == 7 or accuracy > 2")
    assert (stop.kind, run.step) == ("condition", 7)
    stop = run.run(until="grad_norm > 0")
    assert run.step == 8 and stop.text == "step 8: grad_norm > 0 holds"
    with pytest.raises(UsageError, match=r"los, at character 1, is not measured; type one of loss"):
        run.run(until="los < 1")
    assert run.step == 8


def planted(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    return mx.log(x[0, 0]) * 0 + nn.losses.cross_entropy(model(x), y).mean()


def with_nan_in_step_13() -> list[tuple[mx.array, mx.array]]:
    data = [(mx.abs(x), y) for x, y in batches()]
    data[12] = (-data[12][0], data[12][1])
    return data


def values(run: Stepper) -> dict[str, list[float]]:
    tree = {**run.trees["model"].parameters(), "key": mx.random.state[0]}  # type: ignore[index]
    flat = dict(tree_flatten(tree))
    return {name: np.nan_to_num(np.array(each)).tolist() for name, each in flat.items()}


@pytest.mark.parametrize("compiled", [False, True])
def test_nan_stops_it_with_the_operation_where_it_began(compiled: bool) -> None:
    run = Stepper(
        network(), optim.SGD(0.1), planted, with_nan_in_step_13(), compile=compiled, budget=0
    )
    stop = run.run()
    assert (stop.kind, stop.name, run.step) == ("breakpoint", "nonfinite", 13)
    assert "step 13: loss is nan; it begins with Log" in stop.text
    assert stop.text.endswith("%mlx_step graph opens the graph there")
    before, said, noted = values(run), run.said, len(run.journal)
    found = run.graph()
    assert found.graph is not None and found.node is not None
    assert found.graph.primitives[found.graph.primitive[found.node]] == "Log"
    assert (values(run), run.said, run.step, len(run.journal)) == (before, said, 13, noted)
    run.to(12)
    assert run.graph().said == "evaluated again, everything is finite on each rank alone"
    assert run.step == 12 and run.branches.current.tip == run.counters["tip"] == 13
    run.to(13)
    assert values(run) == before
    run.to(0)
    assert run.graph().said == "no step was taken yet: type %mlx_step 1 first"


def test_a_mistake_in_what_is_compiled_is_said_and_leaves_the_state() -> None:
    def mistaken(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(x), y).mean() + undefined  # type: ignore[name-defined]  # noqa: F821

    model, optimizer = network(), optim.Adam(0.01)
    run = Stepper(model, optimizer, mistaken, batches(), compile=True)
    before = values(run)
    for _ in range(2):
        with pytest.raises(NameError, match="undefined"):
            run.run(1)
        assert values(run) == before
    assert Stepper(model, optimizer, loss_fn, batches(), compile=True).run(3).kind == "done"


def test_so_is_one_of_a_form_that_comes_later() -> None:
    def mistaken(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(x).reshape(8, 3), y).mean()

    data = batches()
    data[4] = data[4][0][:7], data[4][1][:7]
    run = Stepper(network(), optim.Adam(0.01), mistaken, data, compile=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="reshape"):
            run.run(8)
        assert run.step == 4
    before = values(run)
    run.back(2)
    run.to(4)
    assert values(run) == before


def test_a_compiled_step_has_the_metrics_of_its_form() -> None:
    def varying(model: nn.Module, x: mx.array, y: mx.array) -> Any:
        found = nn.losses.cross_entropy(model(x), y).mean()
        name, value = ("many", 8.0) if len(x) == 8 else ("few", 5.0)
        return found, {name: mx.array(value)} if len(x) != 6 else {}

    data = [(x[:count], y[:count]) for (x, y), count in zip(batches(), (8, 5, 6) * 5, strict=False)]
    runs = []
    for compiled in (False, True):
        run = Stepper(network(), optim.SGD(0.01), varying, data, compile=compiled, check=False)
        run.run(15)
        runs.append(run)
    for name in ("many", "few"):
        found = runs[1].history.series("main", name, 100)[1]
        assert found[np.isfinite(found)].tolist() == [8.0 if name == "many" else 5.0] * 5
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)


def test_the_key_of_a_rank_follows_from_that_of_another() -> None:
    firsts, nows = [], []
    for seed in (3, 4):
        mx.random.seed(seed)
        firsts.append(np.array(mx.random.state[0]).tolist())  # type: ignore[index]
        for _ in range(2000):
            mx.eval(mx.random.uniform())
        nows.append(np.array(mx.random.state[0]).tolist())  # type: ignore[index]
    assert key_of(firsts[1], firsts[0], nows[0]) == nows[1]
    assert key_of(firsts[1], firsts[0], firsts[0]) == firsts[1]
    assert key_of(firsts[0], firsts[0], nows[1]) == nows[1]
    assert key_of(firsts[1], firsts[0], nows[1]) is None  # reached by no draw


def test_a_step_that_cannot_be_evaluated_again_says_why() -> None:
    data = iter(with_nan_in_step_13() * 40)
    run = Stepper(network(), optim.SGD(0.1), planted, data, budget=0)
    run.no_break("nonfinite")
    run.run(300)
    run.snapshots.forget("main")
    run.keep()
    found = run.graph()
    assert found.graph is None and run.step == 300
    assert found.said.startswith("step 300 could not be evaluated again (step 299 ")


def test_an_iterator_goes_back_as_far_as_its_batches_are_kept() -> None:
    run = stepper(batches=iter(batches(300, 2)), budget=30_000)
    run.run(10)
    first = losses(run)
    run.back(4)
    assert [run.advance().record["loss"] for _ in range(4)] == first[6:]
    run.run(285)
    with pytest.raises(UsageError, match="from an iterator, of which only those from step"):
        run.to(5)
    assert run.step == 295
    assert run.run().kind == "batches"


def test_a_custom_step_with_its_state() -> None:
    model, counts = network(), {"seen": mx.array(0)}
    optimizer = optim.SGD(0.1)

    def step(x: mx.array, y: mx.array) -> dict[str, mx.array]:
        value_and_grad = nn.value_and_grad(model, lambda x, y: loss_fn(model, x, y)[0])
        loss, gradients = value_and_grad(x, y)
        optimizer.update(model, gradients)
        counts["seen"] = counts["seen"] + x.shape[0]
        return {"loss": loss, "seen": counts["seen"]}

    state = {"model": model, "optimizer": optimizer, "counts": counts}
    run = Stepper(step=step, state=state, batches=batches())
    run.run(10)
    first = losses(run)
    assert run.history.last("main")["seen"] == 80
    run.back(5)
    assert counts["seen"].item() == 40
    assert [run.advance().record["loss"] for _ in range(5)] == first[5:]


def test_a_step_that_changes_nothing_is_refused() -> None:
    model = network()
    run = Stepper(
        step=lambda x, y: loss_fn(model.eval(), x, y), state={"model": model}, batches=batches()
    )
    with pytest.raises(UsageError, match="changes nothing of its state"):
        run.run(1)


def test_what_changes_beside_its_state_is_said() -> None:
    calls = []

    def drifting(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
        calls.append(1)
        return nn.losses.cross_entropy(model(x), y).mean() * len(calls)

    run = Stepper(network(), optim.SGD(0.1), drifting, batches())
    assert "gave different results (loss" in run.run(1).text
    assert "run twice from the same state, gave different results" in run.journal[0].text


def test_arrays_that_change_beside_its_state_are_named() -> None:
    model, optimizer = network(), optim.SGD(0.1)
    averages = {"weight": model.layers[0].weight}
    value_and_grad = nn.value_and_grad(model, lambda x, y: loss_fn(model, x, y)[0])

    def average() -> None:
        averages["weight"] = 0.9 * averages["weight"] + 0.1 * model.layers[0].weight

    def step(x: mx.array, y: mx.array) -> mx.array:
        loss, gradients = value_and_grad(x, y)
        optimizer.update(model, gradients)
        average()  # on which nothing else depends
        return loss

    run = Stepper(step=step, state={"model": model}, batches=batches())
    assert "the step changes averages, optimizer, outside its state" in run.run(1).text
    assert not run.exact
    state = {"model": model, "averages": averages, "optimizer": optimizer}
    run = Stepper(step=step, state=state, batches=batches())
    assert run.run(1).text == "step 1" and run.exact


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"learning_rate": -1}, "learning_rate cannot be -1: it is 0 or more"),
        ({"learning_rate": "abc"}, "learning_rate is a number, not 'abc'"),
        ({"learnin_rate": 1}, "no setting 'learnin_rate': did you mean learning_rate"),
        ({"clip": -2.0}, "clip cannot be -2"),
        ({"shuffle": 0.5}, "shuffle is the seed of an order"),
    ],
)
def test_bad_settings_change_nothing(setting: dict[str, Any], said: str) -> None:
    run = stepper()
    before = run.settings.values()
    with pytest.raises(UsageError, match=said):
        run.set(**{"eps": 1e-6, **setting})
    assert run.settings.values() == before and not run.journal


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": 3}, "model is a int"),
        ({"batches": None}, "no batches"),
        ({"batches": []}, "the sequence is empty"),
        ({"batches": 5}, "batches is a int"),
        ({"accumulate": 0}, "accumulate is a number of batches"),
        ({"step": lambda x: x}, "or step=… with state=…, not both"),
    ],
)
def test_bad_arguments_are_said_in_one_line(arguments: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "model": network(), "optimizer": optim.SGD(0.1), "loss_fn": loss_fn, "batches": batches(),
    }  # fmt: skip
    with pytest.raises(UsageError, match=said) as raised:
        Stepper(**{**given, **arguments})
    assert "\n" not in str(raised.value)


def test_steps_that_are_not_there_are_said() -> None:
    run = stepper()
    run.run(3)
    with pytest.raises(UsageError, match="there are 3 steps to go back from here, not 5"):
        run.back(5)
    with pytest.raises(UsageError, match=r"no layer 'layers.9': did you mean layers\.\d"):
        run.freeze("layers.9")
    with pytest.raises(UsageError, match="no branch 'mian': did you mean main"):
        run.switch("mian")


def test_reset_forgets_all_but_the_beginning() -> None:
    run = stepper()
    run.run(5)
    first = losses(run)
    run.set(learning_rate=0.3)
    run.branch("hot")
    run.run(5)
    run.reset()
    assert run.step == 0 and [b.name for b in run.branches] == ["main"] and not losses(run)
    run.run(5)
    assert losses(run) == first


def test_a_checkpoint_goes_on_where_it_was(tmp_path: Any) -> None:
    run = stepper(optim.AdamW(1e-2))
    run.run(5)
    run.freeze("layers.4")
    run.run(3)
    run.save(str(tmp_path / "run"))
    run.run(7)
    first = losses(run)
    other = Stepper(network(), optim.AdamW(1e-2), loss_fn, batches())
    other.load(str(tmp_path / "run"))
    assert other.step == 8 and other.frozen == ["layers.4"]
    other.run(7)
    assert losses(other) == first[8:]
    fresh = network()
    fresh.load_weights(str(tmp_path / "run" / "model.safetensors"))
    other.to(8)
    assert same(weights(fresh), weights(other.modules["model"]))
    with pytest.raises(UsageError, match="step 3 is not kept"):
        other.to(3)


def test_a_run_is_exported_and_replayed_to_the_same_bits() -> None:
    run = stepper(optim.SGD(0.1, momentum=0.9))
    run.run(5)
    run.set(learning_rate=0.02, clip=0.5)
    run.run(5)
    run.back(5)
    run.set(shuffle=3)
    run.run(6)
    program: dict[str, Any] = {}
    exec(run.script(), program)
    other = stepper(optim.SGD(0.1, momentum=0.9))
    program["replay"](other)
    assert other.step == 11
    assert same(weights(other.modules["model"]), weights(run.modules["model"]))


def test_a_model_that_is_assigned_again_is_said() -> None:
    PROTECTION.namespace = {"model": network()}
    try:
        model = PROTECTION.namespace["model"]
        run = Stepper(model, optim.SGD(0.1), loss_fn, batches())
        assert run.run(2).text == "step 2"
        PROTECTION.namespace["model"] = network()
        assert "model was assigned again since the stepper was made" in run.run(2).text
        assert run.run(2).text == "step 6"
    finally:
        PROTECTION.namespace = {}


@pytest.mark.parametrize("edit", [{"shuffle": 3}, {"learning_rate": 0.1}])
def test_settings_from_before_the_first_step_hold_after_going_back(edit: dict[str, float]) -> None:
    run = stepper()
    run.set(**edit)
    assert "gave different results" not in run.run(14).text
    first = losses(run)
    run.back(9)
    run.run(9)
    run.back(14)
    assert [run.advance().record["loss"] for _ in range(14)] == first
    assert f"'{next(iter(edit))}'" in run.script()


def test_it_is_validated_every_so_many_steps() -> None:
    seen: list[int] = []

    def measure() -> float:
        seen.append(run.step)
        return 10.0 - run.step

    run = stepper(validate=measure, validate_every=4)
    assert run.run(until="validation_loss < 3").step == 8
    assert seen == [4, 8]
    steps, found = run.history.series("main", "validation_loss")
    assert steps.tolist() == [4, 8] and found.tolist() == [6.0, 2.0]
    assert [each.text for each in run.journal] == ["validation loss 6", "validation loss 2"]
    run.back(5)
    run.run(6)  # up to step 8 these were taken before
    assert seen == [4, 8] and run.step == 9
    with pytest.raises(UsageError, match="validate_every takes a number of steps, not -1"):
        stepper(validate=measure, validate_every=-1)


def test_a_validation_that_is_broken_off_loses_no_step() -> None:
    def measure() -> float:
        raise KeyboardInterrupt

    run = stepper(validate=measure, validate_every=6)
    with pytest.raises(KeyboardInterrupt):
        run.run(20)
    assert run.step == 6 and len(losses(run)) == 6 and run.doing == "paused"
    run.validation.interval = 0
    run.run(2)
    assert run.step == 8 and len(losses(run)) == 8


def test_what_is_trained_goes_back_too() -> None:
    run = stepper()
    run.run(3)
    run.run(1)
    first = losses(run)
    run.freeze("layers.0")
    run.run(2)
    assert not any("layers.0" in name for name in run.program.trained)
    run.to(3)
    assert any("layers.0" in name for name in run.program.trained)
    assert run.advance().record["loss"] == first[3]
    run.to(6)
    assert not any("layers.0" in name for name in run.program.trained)


def test_a_parameter_that_came_later_is_not_there_before() -> None:
    run = stepper()
    run.run(3)
    model = run.modules["model"]
    model.extra = mx.zeros(3)
    run.trees["optimizer"].init(model.trainable_parameters())
    mx.eval(model.parameters(), run.trees["optimizer"].state)
    run.run(2)
    assert "extra" in run.program.trained
    run.to(2)
    assert "extra" not in run.program.trained and "extra" not in model


def test_a_course_that_restarts_its_batches_is_taken_again() -> None:
    run = stepper(batches=batches()[:20])
    run.run(20)
    run.restart_batches()
    run.run(10)
    first = weights(run.modules["model"])
    for before in (0, 12, 20):
        run.to(before)
        assert str(run.run(30 - before)) == "step 30"
        assert same(weights(run.modules["model"]), first)
    run.to(12)
    assert "step == 25 holds" in str(run.run(until="step == 25"))
    assert [each.name for each in run.branches] == ["main"]


@pytest.mark.parametrize("then", ["branch", "switch", "advance", "nothing"])
@pytest.mark.parametrize("where", ["batch", "record"])
def test_steps_before_an_interrupt_are_in_the_history(
    monkeypatch: pytest.MonkeyPatch, then: str, where: str
) -> None:
    monkeypatch.setattr("mlxbench_kernel.training.loop.LEASE_SECONDS", 1000.0)
    given = batches()
    comes = [False]

    def batch(number: int) -> Pair:
        if where == "batch" and number == 50 and comes:
            comes.clear()
            raise KeyboardInterrupt
        return given[number % len(given)]

    run = stepper(batches=batch, check=False)
    run.run(1)
    run.branch("other")
    run.switch("main")
    if where == "record":
        record = run._record

        def interrupted(taken: Any) -> None:
            if any(each.record["step"] == 50 for each in taken):
                monkeypatch.undo()
                raise KeyboardInterrupt
            record(taken)

        monkeypatch.setattr(run, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run(100)
    here = run.step
    assert here >= 50
    if then == "branch":
        run.branch("new")
    elif then == "switch":
        run.switch("other")
    elif then == "advance":
        run.advance()
    steps, _ = run.history.series("main", "loss", 1000)
    assert steps.tolist() == list(range(1, here + 1 + (then == "advance")))


def test_a_number_of_a_step_that_is_past_is_no_end() -> None:
    run = stepper()
    run.run(20)
    with pytest.raises(UsageError, match=r"step == 3 holds at step 3 for the last .*to\(3\)"):
        run.run(until="step == 3")
    assert run.step == 20
    assert run.run(until="step % 8 == 0").step == 24


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda run: run.freeze(3), "no layer 3"),
        (lambda run: run.set_budget("5MB"), "number of bytes, as 2e9, not '5MB'"),
        (lambda run: run.set_budget(-1), "number of bytes"),
        (lambda run: run.equalize("a"), "no rank a"),
        (lambda run: run.break_at("spik"), "did you mean spike"),
        (lambda run: stepper(budget=-5), "number of bytes"),
        (lambda run: stepper(replicas="x"), "replicas takes a number of steps"),
    ],
)
def test_arguments_of_another_kind_are_named(wrong: Callable[[Stepper], Any], said: str) -> None:
    run = stepper()
    with pytest.raises(UsageError, match=said):
        wrong(run)


def test_an_iterator_that_ends_is_not_said_to_begin_again() -> None:
    run = stepper(batches=iter(batches()[:5]))
    assert "out of batches; give a sequence" in str(run.run(10))
