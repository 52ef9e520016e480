"""What ranks tell one another at the end of a lease, of one rank."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxbench_kernel.training.outcome import MOST, Outcome
from mlxbench_kernel.training.telling import COMPARING, POOL, STOP, Telling, padded

NUMBERS = [float(number) for number in range(1, COMPARING + 1)]


def outcome(*values: float) -> Outcome:
    metrics = tuple(f"m{number}" for number in range(len(values) - 1))
    return Outcome(mx.array(values), metrics=metrics)


def told(telling: Telling, *steps: Outcome) -> tuple[list[float], list[list[float]]]:
    telling.write(NUMBERS, steps[:-1])
    numbers, values = telling.read([telling.told(steps[-1])], steps)
    return numbers[0], [each[0] for each in values]


@pytest.fixture
def telling() -> Telling:
    return Telling(mx.distributed.init(), 7.0)


def test_each_step_has_its_values(telling: Telling) -> None:
    for steps in (
        [[1.0]],
        [[float(n)] for n in range(MOST)],
        [[1.0, 2.0, 3.0], [4.0], [5.0, 6.0]],  # metrics come and go
        [[1.0], [2.0, 3.0, 4.0, 5.0]],
        [[9.0]],  # after a longer one
    ):
        numbers, values = told(telling, *(outcome(*each) for each in steps))
        assert values == steps
        assert numbers == [0.0, *NUMBERS, 7.0]


def test_what_travels_depends_on_the_lease_alone() -> None:
    old, new = (Telling(mx.distributed.init(), 7.0) for _ in range(2))
    told(old, *[outcome(1.0, 2.0, 3.0)] * MOST)
    for lease in (1, 2, MOST):
        shapes = []
        for each in (old, new):
            told(each, *[outcome(1.0, 2.0)] * lease)
            shapes.append(padded(each.numbers, 2).shape)
        assert shapes == [(1, POOL + 1 + 2 * MOST)] * 2


def test_a_request_to_stop_outlives_more_room(telling: Telling) -> None:
    telling.stop()
    for lease in (1, 5):
        assert told(telling, *[outcome(1.0, 2.0)] * lease)[0][STOP] == 1
    telling.begin()
    assert told(telling, outcome(1.0))[0][STOP] == 0


def test_one_that_comes_after_the_row_was_written_goes_out_with_it(telling: Telling) -> None:
    telling.write(NUMBERS, [])
    lazy = telling.told(outcome(1.0))
    telling.stop()
    assert telling.read([lazy], [outcome(1.0)])[0][0][STOP] == 1
