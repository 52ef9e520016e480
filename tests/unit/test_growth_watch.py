"""Memory that grows, as a notebook sees it in what its ranks tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from fake_memory import FakeRanks

from mlxbench_kernel.memory import HOLDERS, Holdings, attribute
from mlxbench_kernel.memory.record import COLUMNS, MOST, Mark, Samples
from mlxbench_kernel.remote.growth_series import GrowthSeries
from mlxbench_kernel.remote.growth_watch import GrowthWatch
from mlxbench_kernel.remote.memory_feed import MemoryFeed, Seen

NAN = float("nan")
TIME, STEP, CELL, ACTIVE = (COLUMNS.index(name) for name in ("time", "step", "cell", "active"))


def samples(active: list[float], begin: float = 0.0) -> Samples:
    """A sample each tenth of a second, of a rank that does nothing."""
    rows = np.full((len(active), len(COLUMNS)), NAN)
    rows[:, TIME] = begin + np.arange(len(active)) / 10
    rows[:, ACTIVE] = active
    return rows


@contextmanager
def watching(look: Callable[[int], Holdings]) -> Iterator[GrowthWatch]:
    feed = MemoryFeed(FakeRanks([]))  # else its own thread would look at those too
    watch = GrowthWatch(feed, look)
    try:
        yield watch
    finally:
        watch.close()
        feed.close()


def more(seen: Seen, per_sample: float, column: int, count: int = 400) -> None:
    """Samples in which a stepper takes a step each, or which one cell has."""
    taken = seen.ring.taken
    first = 1e6 if seen.ring.last is None else seen.ring.last[ACTIVE]
    rows = samples([first + per_sample * n for n in range(count)], taken / 10)
    rows[:, column] = np.arange(taken, taken + count) if column == STEP else 3
    seen.ring.put(rows)


@pytest.mark.parametrize(("column", "said"), [(STEP, "with each step"), (CELL, "its cell runs")])
def test_growth_is_reported_and_then_what_is_behind_it(column: int, said: str) -> None:
    kept = [mx.ones((100, 100))]
    mx.eval(kept)
    seen = Seen(0, "studio", 1)
    with watching(lambda rank: attribute({"log": kept})) as watch:
        more(seen, 0.0, column)
        watch.decide(seen)
        assert watch.reported == {}
        more(seen, 1e4, column, 600)
        watch.decide(seen)
        assert watch.reported[0].said == "", "why is not known yet"
        kept += [mx.ones((100, 100)) + n for n in range(300)]
        mx.eval(kept)
        more(seen, 1e6, column)
        watch.decide(seen)
        assert said in watch.reported[0].said
        assert "log holds 300 arrays more" in watch.reported[0].said


def test_states_that_a_stepper_keeps_are_no_leak() -> None:
    kept: list[mx.array] = []
    HOLDERS["states of this test"] = lambda: list(kept)
    seen = Seen(0, "studio", 1)
    try:
        with watching(lambda rank: attribute({})) as watch:
            for _ in range(2):
                more(seen, 1e6, STEP)
                watch.decide(seen)
                kept += [mx.ones((1000, 1000)) + n for n in range(100)]
                mx.eval(kept)
            assert watch.reported[0].before is None and watch.reported[0].said == ""
    finally:
        del HOLDERS["states of this test"]


def run_cell(seen: Seen, left: float, minutes: float, step: float = NAN) -> None:
    """A cell of two seconds that leaves so much, and then nothing for some minutes."""
    last = seen.ring.last
    before, begin = (1e8, 0.0) if last is None else (last[ACTIVE], last[TIME] + 0.1)
    rows = samples([before] * 20 + [before + left] * int(600 * minutes), begin)
    number = len(seen.marks)
    rows[:20, CELL], rows[:, STEP] = number, step
    seen.ring.put(rows)
    seen.marks.append(Mark(number, "cell", "Cell", begin, begin + 1.95))


@pytest.mark.parametrize("step", [NAN, 120.0])
def test_growth_from_cell_to_cell_is_found_though_they_are_minutes_apart(step: float) -> None:
    """Also where a stepper has taken steps before, which is idle or gone."""
    kept = [mx.zeros(1)]
    seen = Seen(0, "studio", 1)
    with watching(lambda rank: attribute({"log": kept})) as watch:
        for ran in range(16):
            kept.append(mx.ones((1000, 1000)) + ran)
            mx.eval(kept)
            run_cell(seen, 4e6, 5, step)
            watch.decide(seen)
        assert seen.ring.taken > MOST, "the first cells are not among the samples any more"
        assert "rank 0 grows with each cell, by 4.00 MB: log holds" in watch.reported[0].said


def test_cells_that_leave_nothing_or_hardly_anything_do_not_grow() -> None:
    seen = Seen(0, "studio", 1)
    with watching(lambda rank: attribute({})) as watch:
        for ran in range(40):
            run_cell(seen, 4 + (ran % 3) * 1e3, 0.1)
            watch.decide(seen)
        assert watch.reported == {}


def test_short_cells_between_two_samples_count_too() -> None:
    seen = Seen(0, "studio", 1)
    seen.ring.put(samples([1e8 + 5e6 * (n // 10) for n in range(400)]))
    for number in range(39):
        begin = number + 0.91
        seen.marks.append(Mark(number, "cell", "Cell", begin, begin + 0.02))
    (series,) = GrowthSeries().read(seen)
    assert (series.kind, series.active[:2]) == ("cells", [105_000_000, 110_000_000])
    assert len(series.active) == 39


def test_steps_that_take_longer_than_a_minute_count() -> None:
    seen, series = Seen(0, "studio", 1), GrowthSeries()
    for step in range(30):
        rows = samples([1e6 * step + 5e5, 1e6 * step, 1e6 * step + 9e5] * 300, 90.0 * step)
        rows[:, STEP] = step
        seen.ring.put(rows)
        (found,) = series.read(seen)
        assert series.read(seen) == [], "no step was taken since"
    assert found.steps == list(range(30))
    assert found.active == [1_000_000 * step for step in range(30)], "the least in each"


def test_steps_before_going_back_are_no_part_of_the_series() -> None:
    seen, series = Seen(0, "studio", 1), GrowthSeries()
    rows = samples([5.0] * 50)
    rows[:, STEP] = [*range(30), *range(10, 30)]
    seen.ring.put(rows)
    (found,) = series.read(seen)
    assert (found.kind, found.number, found.steps) == ("steps", 1, list(range(10, 30)))


def test_a_rank_that_was_started_anew_begins_anew() -> None:
    seen = Seen(0, "studio", 1)
    with watching(lambda rank: attribute({})) as watch:
        for _ in range(8):
            run_cell(seen, 4e6, 0.1)
            watch.decide(seen)
        seen.record, seen.begun = "two", len(seen.marks)
        for _ in range(8):
            run_cell(seen, 4e6, 0.1)
            watch.decide(seen)
        assert watch.reported == {}, "neither has run cells enough"


def test_growth_of_a_process_that_is_gone_is_not_reported_of_the_next() -> None:
    seen = Seen(0, "studio", 1)
    with watching(lambda rank: attribute({})) as watch:
        more(seen, 1e6, STEP)
        watch.decide(seen)
        assert 0 in watch.reported
        seen.record = "two"
        watch.decide(seen)
        assert watch.reported == {}
