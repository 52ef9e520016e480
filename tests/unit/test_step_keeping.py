"""After which steps of a run states are kept, and when replicas are compared."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from mlxbench_kernel.training.keeping import MOST, RECENT, SECONDS, SHORT, Keeping
from mlxbench_kernel.training.loop import lease_of
from mlxbench_kernel.training.watching import SHARE, USUAL, ReplicaWatch


def kept(keeping: Keeping, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if keeping.due(step)]


@pytest.mark.parametrize("seconds", [SHORT * 1.01, 1.0])
def test_of_long_steps_each_is_kept(seconds: float) -> None:
    keeping = Keeping()
    keeping.note(seconds)
    assert kept(keeping, 20) == list(range(1, 21))
    keeping.end_soon(20)
    assert keeping.end == 20, "no more steps before a pause"


@pytest.mark.parametrize("seconds", [0.001, 0.002, 0.02, SHORT])
def test_of_short_steps_one_in_some_time_and_the_last_ones(seconds: float) -> None:
    keeping = Keeping()
    keeping.begin(500)
    keeping.note(seconds)
    found = kept(keeping, 500)
    assert found[-RECENT:] == list(range(501 - RECENT, 501))
    gap = max(b - a for a, b in pairwise(found))
    assert 2 <= gap <= MOST and gap * seconds <= SECONDS


@pytest.mark.parametrize(("seconds", "more"), [(0.002, 2), (0.02, 1), (SHORT, 1), (0.05, 0)])
def test_before_a_pause_some_steps_are_taken_and_kept(seconds: float, more: int) -> None:
    keeping = Keeping()
    keeping.note(seconds)
    keeping.end_soon(100)
    assert keeping.end == 100 + more and more * seconds <= SHORT
    assert kept(keeping, 100 + more)[-more - 1 :] == list(range(100, 101 + more))


def test_a_pause_is_within_50_ms_of_a_step() -> None:
    for seconds in np.linspace(0.0005, 0.1, 400):
        keeping = Keeping()
        keeping.note(seconds)
        keeping.end_soon(100)
        lease = lease_of(seconds)
        assert lease >= 1 and (lease - 1 + keeping.end - 100) * seconds <= 0.05
    assert lease_of(0.002) > lease_of(0.02) > lease_of(0.2) == 1


def test_replicas_are_compared_less_often_where_that_takes_long() -> None:
    group = mx.distributed.init()
    watch = ReplicaWatch({}, group, None)
    assert watch.interval == USUAL
    watch.note(0.0, 1.0)  # nothing was compared
    watch.note(SHARE * USUAL, 1.0)
    assert watch.interval == USUAL
    watch.note(0.0005, 0.002)
    assert watch.interval == 2 * USUAL, "it rises by and by"
    watch.note(0.0005, 0.002)
    watch.note(0.0005, 0.002)
    assert watch.interval * 0.002 * SHARE == pytest.approx(0.0005, rel=0.01)
    watch.note(0.05, 0.002)
    assert watch.interval == 250, "the fastest of the last ones counts"
    other = ReplicaWatch({}, group, None)  # of a rank that was started anew
    for each in (watch, other):
        each.agree(250)
        each.note(0.0006, 0.002)
    assert watch.interval == other.interval == 300
    asked = ReplicaWatch({}, group, 10)
    asked.note(1.0, 0.001)
    assert asked.interval == 10
