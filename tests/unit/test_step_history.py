"""What was measured of steps: kept by branch, thinned, read while it grows, sent as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mlxbench_kernel.training.columns import Rows
from mlxbench_kernel.training.encoding import decode, decode_samples, encode, encode_samples
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.sampling import Sampling


def filled(steps: Iterable[int], most: int = 200_000, branch: str = "main") -> History:
    history = History(most)
    for step in steps:
        history.append(branch, {"step": step, "loss": 1 / step})
    return history


def steps(history: History, branch: str = "main") -> list[float]:
    return history.series(branch, "loss", 10**6)[0].tolist()


def everything(history: History, cursor: int = 0, at_once: int = 5000) -> list[tuple[str, float]]:
    found = []
    while True:
        cursor, rows = history.since(cursor, at_once)
        if not rows:
            return found
        assert len(rows) <= at_once
        found += [(branch, record["step"]) for branch, record in rows]


def test_who_comes_late_reads_the_last_rows_alone() -> None:
    history = filled(range(1, 101))
    assert everything(history, history.end - 3) == [("main", 98), ("main", 99), ("main", 100)]
    assert history.since(history.end) == (history.end, [])
    assert History().end == 0


def test_a_record_comes_back_as_it_was_with_nan_and_without_what_was_not_measured() -> None:
    history = History()
    records = [
        {"step": 1.0, "loss": 0.1, "nonfinite": 0.0},
        {"step": 2.0, "loss": math.nan},
        {"step": 3.0, "loss": math.inf, "accuracy": -0.0},
        {"step": 4.0, "loss": -math.inf, "nonfinite": math.nan},
    ]
    for record in records:
        history.append("main", record)
        assert repr(history.last("main")) == repr(record)
    _, rows = history.since(0)
    assert repr(rows) == repr([("main", record) for record in records])
    assert history.names() == history.names("main") == ["step", "loss", "nonfinite", "accuracy"]
    at, values = history.series("main", "nonfinite")
    assert at.tolist() == [1, 4] and values[0] == 0 and math.isnan(values[1])


def test_nothing_measured_is_no_error() -> None:
    history = History()
    assert history.last("main") == {} and history.names() == [] and history.names("main") == []
    assert history.since(0) == (0, [])
    assert [part.size for part in history.series("main", "loss")] == [0, 0]
    history.truncate("main", 3)
    history.drop("main")
    history.append("main", {"step": 1})
    history.truncate("main", 0)
    assert history.last("main") == {} and history.since(0) == (0, [])
    assert [part.size for part in history.series("main", "step")] == [0, 0]


def test_rows_in_a_row_are_as_one_after_another() -> None:
    rows: list[dict[str, float]] = [
        {"step": float(step), "loss": math.nan if step == 7 else step / 3}
        | ({"norm": float(step)} if step in (4, 5, 6) else {})
        for step in range(1, 700)
    ]
    one, other, late = History(), History(), History()
    for row in rows:
        one.append("main", row)
        one.last("main")  # what waits is entered when somebody reads
    ends = [0, 1, 3, 6, 20, 255, 258, 690, 699]  # one alone, other names, and where columns grow
    for first, end in pairwise(ends):
        other.extend("main", rows[first:end])
        other.last("main")
        late.extend("main", rows[first:end])
    assert repr(one.since(0)) == repr(other.since(0)) == repr(late.since(0))
    assert one.end == other.end == late.end
    other.extend("main", rows[99:120])  # after going back
    other.extend("main", [])
    assert steps(other)[-1] == 120 and len(steps(other)) == 120


@pytest.mark.parametrize("entered", [0, 2, 5])
def test_an_interrupt_while_rows_are_entered_loses_none(
    monkeypatch: pytest.MonkeyPatch, entered: int
) -> None:
    history = filled(range(1, 6))
    history.extend("other", [{"step": 2.0, "loss": 1.0}])
    extend = Rows.extend

    def interrupted(rows: Rows, order: int, records: Any) -> None:
        monkeypatch.setattr(Rows, "extend", extend)
        extend(rows, order, records[:entered])
        raise KeyboardInterrupt

    monkeypatch.setattr(Rows, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        history.last("main")
    assert everything(history) == [*(("main", step) for step in range(1, 6)), ("other", 2)]


@pytest.mark.parametrize("grown", [0, 1, 2])
def test_an_interrupt_while_columns_grow_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, grown: int
) -> None:
    history = filled(range(1, 257))
    history.last("main")
    history.append("main", {"step": 257, "loss": 1.0})
    concatenate, calls = np.concatenate, iter(range(9))

    def interrupted(parts: Any) -> Any:
        if next(calls) == grown:
            raise KeyboardInterrupt
        return concatenate(parts)

    with monkeypatch.context() as patched:
        patched.setattr(np, "concatenate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            history.last("main")
    assert steps(history) == list(range(1, 258))


def test_who_changes_a_record_afterwards_changes_nothing_here() -> None:
    history, record = History(), {"step": 1.0, "loss": 2.0}
    history.append("main", record)
    record["loss"] = 3.0
    del record["step"]
    assert history.last("main") == {"step": 1.0, "loss": 2.0}


def test_nothing_comes_after_all_was_forgotten() -> None:
    given = filled(range(1, 4)).give()
    for forget in (History.clear, lambda history: history.receive(given)):
        history = filled(range(5, 9))
        forget(history)
        assert steps(history) == ([] if forget is History.clear else [1, 2, 3])
    history = filled(range(1, 6))
    history.drop("main")
    assert everything(history) == []


def test_going_back_forgets_later_steps_and_their_measures() -> None:
    history = filled(range(1, 401))
    for step in range(401, 1001):
        history.append("main", {"step": step, "rare": 5.0})
    history.truncate("main", 400)
    assert history.last("main") == {"step": 400, "loss": 1 / 400}
    history.append("main", {"step": 401, "loss": 2.0})
    assert history.last("main") == {"step": 401, "loss": 2.0}  # nothing of what was at this place
    assert steps(history) == list(range(1, 402))
    history.truncate("main", 9999)
    assert steps(history) == list(range(1, 402))


def test_a_step_taken_again_replaces_what_followed() -> None:
    history = filled(range(1, 11))
    history.append("main", {"step": 10, "loss": 6.0})
    assert steps(history) == list(range(1, 11))
    history.append("main", {"step": 5, "loss": 7.0})
    assert steps(history) == [1, 2, 3, 4, 5]
    assert history.last("main")["loss"] == 7.0


def test_branches_are_kept_apart_and_dropped() -> None:
    history = filled(range(1, 6))
    history.append("faster", {"step": 4, "loss": 9.0})
    history.append("main", {"step": 6, "loss": 1.0})
    history.append("faster", {"step": 5, "accuracy": 1.0})
    assert history.names("main") == ["step", "loss"]
    assert history.names() == ["step", "loss", "accuracy"]
    order = [("main", step) for step in range(1, 6)] + [("faster", 4), ("main", 6), ("faster", 5)]
    assert everything(history) == everything(history, at_once=1) == order
    assert everything(history, at_once=3) == order
    history.drop("main")
    assert everything(history) == [("faster", 4), ("faster", 5)]
    assert history.last("main") == {}


def test_a_reader_gets_each_row_once() -> None:
    history = filled(range(1, 4))
    cursor, rows = history.since(0)
    assert len(rows) == 3
    assert history.since(cursor) == (cursor, [])
    history.truncate("main", 1)
    history.append("main", {"step": 2, "loss": 5.0})
    copy = filled(range(1, 4))  # what the reader has
    cursor, rows = history.since(cursor)
    for branch, record in rows:
        copy.append(branch, record)
    assert rows == [("main", {"step": 2, "loss": 5.0})]
    assert everything(copy)[-1] == ("main", 2) and steps(copy) == steps(history)


def test_beyond_the_bound_older_rows_are_thinned_and_extremes_stay() -> None:
    history = History(most=1000)
    losses = np.random.default_rng(0).normal(size=20_000)
    losses[[300, 7000]] = [50, -50]
    losses[[1234, 4321]] = [math.nan, math.inf]
    for step, loss in enumerate(losses, 1):
        history.append("main", {"step": step, "loss": loss})
        if step % 997 == 0:
            assert len(everything(history)) <= 1000
    kept = {int(step) for _, step in everything(history)}
    assert {1, 301, 7001, 1235, 4322, 20_000} <= kept
    assert set(range(19_800, 20_001)) <= kept  # recent ones are all there
    at, values = history.series("main", "loss", 10**6)
    np.testing.assert_array_equal(values, losses[at.astype(int) - 1])
    gaps = np.diff(at)
    assert gaps.min() > 0 and gaps.max() < 200  # older ones are alike, however old


def test_thinning_leaves_a_branch_its_ends() -> None:
    history = filled(range(1, 101), most=500, branch="old")
    history.append("old", {"step": 101, "loss": 1 / 99})  # no extreme
    for step in range(102, 3000):
        history.append("main", {"step": step})
    assert history.last("old") == {"step": 101, "loss": 1 / 99}
    assert steps(history, "old")[0] == 1
    assert len(everything(history)) <= 500


@pytest.mark.parametrize("points", [5, 50, 2000])
@pytest.mark.parametrize("length", [4, 50, 51, 1999, 100_000])
def test_a_thinned_curve_has_its_extremes(points: int, length: int) -> None:
    values = np.random.default_rng(length).normal(size=length)
    history = History()
    for step, value in enumerate(values, 1):
        history.append("main", {"step": step, "loss": value})
    at, thinned = history.series("main", "loss", points)
    assert min(length, points) / 3 < len(at) <= points
    assert at[0] == 1 and at[-1] == length and (np.diff(at) > 0).all()
    np.testing.assert_array_equal(thinned, values[at.astype(int) - 1])
    assert thinned.min() == values.min() and thinned.max() == values.max()


def test_a_thinned_curve_shows_where_nan_began_and_the_spike_before_it() -> None:
    history = History()
    for step in range(1, 3001):
        loss = math.nan if 2000 <= step < 2010 else 1e6 if step == 1999 else 1.0
        history.append("main", {"step": step, "loss": loss})
    at, values = history.series("main", "loss", 100)
    shown = dict(zip(at.tolist(), values.tolist(), strict=True))
    assert len(at) <= 100
    assert shown[1999] == 1e6 and math.isnan(shown[2000])
    for step in range(3001, 6001):
        history.append("main", {"step": step, "loss": math.nan if step % 7 == 0 else step % 5})
    assert len(history.series("main", "loss", 100)[0]) <= 100
    gone = filled([1])
    for step in range(2, 500):
        gone.append("main", {"step": step, "loss": math.nan})
    assert np.isnan(gone.series("main", "loss", 10)[1][-1])


def test_one_thread_reads_what_another_appends() -> None:
    history, total = History(), 20_000

    def read() -> list[float]:
        cursor, found = 0, []
        while not found or found[-1] < total:
            cursor, rows = history.since(cursor)
            found += [record["step"] for _, record in rows]
            history.series("main", "loss", 100)
        return found

    with ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        for step in range(1, total + 1):
            history.append("main", {"step": step, "loss": 1 / step})
        assert reader.result() == list(range(1, total + 1))


def test_rows_travel_as_json_without_nan() -> None:
    rows = [
        ("main", {"step": 1.0, "loss": 0.1 + 0.2, "a": math.nan, "b": math.inf, "c": -math.inf}),
        ("µ", {"step": 2.0, "tiny": 5e-324, "zero": -0.0}),
    ]
    text = json.dumps(encode(rows), allow_nan=False)
    assert repr(decode(json.loads(text))) == repr(rows)


def sample(value: float) -> dict[str, np.ndarray]:
    return {"grad_norm": np.array([value, math.nan, 3], np.float32)}


def test_samples_of_parameters_are_kept_by_branch() -> None:
    history = ParameterHistory(["a", "b", "c"])
    values = sample(1)
    history.append("main", 10, values)
    values["grad_norm"][0] = 100  # the caller's array is the caller's
    history.append("main", 20, sample(2))
    history.append("faster", 20, sample(3))
    assert history.names == ("a", "b", "c")
    assert history.samples("main") == [10, 20] and history.samples("none") == []
    np.testing.assert_array_equal(history.get("main", 10, "grad_norm"), sample(1)["grad_norm"])
    with pytest.raises(ValueError, match="read-only"):
        history.get("main", 10, "grad_norm")[0] = 100
    assert history.get("main", 11, "grad_norm") is None
    assert history.get("main", 10, "update_ratio") is None
    cursor, rows = history.since(0, 2)
    assert [row[:2] for row in rows] == [("main", 10), ("main", 20)]
    cursor, rows = history.since(cursor)
    assert [row[:2] for row in rows] == [("faster", 20)] and history.since(cursor) == (cursor, [])
    history.append("main", 15, sample(4))
    assert history.samples("main") == [10, 15]
    history.truncate("main", 14)
    assert history.samples("main") == [10]
    history.drop("main")
    assert history.samples("main") == [] and history.samples("faster") == [20]


def test_older_samples_are_thinned() -> None:
    history = ParameterHistory(["a", "b", "c"], most=20)
    for step in range(1, 1001):
        history.append("main", step, sample(step))
        assert len(history.samples("main")) <= 20
    kept = history.samples("main")
    assert kept[0] == 1 and kept[-6:] == list(range(995, 1001))
    assert max(np.diff(kept)) < 250  # older ones are alike, however old
    for step in kept:
        assert history.get("main", step, "grad_norm")[0] == step


def test_samples_travel_as_json_to_the_same_bits() -> None:
    history = ParameterHistory(["a", "b", "c"])
    history.append("main", 7, {**sample(1e-45), "empty": np.empty(0, np.float32)})
    _, rows = history.since(0)
    text = json.dumps(encode_samples(rows), allow_nan=False)
    ((branch, step, values),) = decode_samples(json.loads(text))
    assert (branch, step) == ("main", 7) and values["empty"].size == 0
    assert values["grad_norm"].dtype == np.float32
    assert values["grad_norm"].tobytes() == rows[0][2]["grad_norm"].tobytes()


def test_what_another_rank_gave_comes_before_what_was_measured_after_it() -> None:
    theirs = History()
    for step in range(1, 1001):
        theirs.append("main", {"step": step, "loss": 1 / step, "seconds": 0.1})
    theirs.append("other", {"step": 500, "loss": math.nan})
    own = History()
    own.append("main", {"step": 1, "loss": 5.0})
    own.receive(theirs.give(without=("seconds",)))
    own.append("main", {"step": 1001, "loss": 0.0, "seconds": 0.2})
    assert own.names("main") == ["step", "loss", "seconds"]
    assert own.series("main", "seconds")[0].tolist() == [1001]
    assert theirs.series("main", "seconds")[0].tolist() == [*range(1, 1001)]
    cursor, rows = own.since(0, 600)
    assert own.is_received(0) and [row["step"] for _, row in rows] == [*range(1, 601)]
    cursor, rows = own.since(cursor, 600)
    assert len(rows) == 401 and rows[-1][0] == "other" and not own.is_received(cursor)
    cursor, rows = own.since(cursor, 600)
    assert rows == [("main", {"step": 1001, "loss": 0.0, "seconds": 0.2})]
    assert own.since(cursor) == (cursor, [])
    whole = History()
    whole.receive(own.give())
    assert not whole.is_received(0) and whole.end == own.end
    assert [row["step"] for _, row in whole.since(0)[1]] == [*range(1, 1001), 500, 1001]


def test_a_copy_keeps_what_it_has_where_another_rank_tells() -> None:
    copy = filled([1, 2, 3])
    for step in range(1, 6):
        copy.add_missing("main", {"step": step, "loss": 0.0})
    assert copy.series("main", "loss")[1].tolist() == [1, 1 / 2, 1 / 3, 0, 0]
    samples = ParameterHistory(("a",))
    samples.append("main", 4, {"grad_norm": np.ones(1, np.float32)})
    received = ParameterHistory(("a",))
    received.receive(samples.give(without=("update_ratio",)))
    received.append("main", 8, {"grad_norm": np.zeros(1, np.float32)})
    assert received.is_received(0) and received.since(0)[0] == 1
    assert [step for _, step, _ in received.since(0)[1]] == [4]
    assert [step for _, step, _ in received.since(1)[1]] == [8]
    received.add_missing("main", 4, {"grad_norm": np.zeros(1, np.float32)})
    assert received.samples("main") == [4, 8]


def test_ranks_measure_at_the_same_steps_after_one_was_started_anew() -> None:
    old, new = Sampling(), Sampling()
    for _ in range(30):
        old.due()
        old.note(0.01, 0.02)
    assert old.standing() != new.standing()
    rows = np.array([old.standing(), new.standing()])
    old.agree(rows)
    new.agree(rows)
    for _ in range(300):
        assert old.due() == new.due()
        old.note(0.01, 0.011)
        new.note(0.01, 0.011)
    assert old.interval == new.interval > 4


def test_how_often_it_is_measured_is_decided_where_it_was() -> None:
    sampling = Sampling()
    for _ in range(8):
        sampling.note(0.01, 0.02)
    measured = sampling.interval
    for _ in range(20):
        sampling.note(0.01, 0.0)
    assert sampling.interval == measured
    sampling.note(0.01, 0.02)
    assert sampling.interval == 2 * measured, "it rises by and by"
