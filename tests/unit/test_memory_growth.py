"""Memory that grows step after step, in real runs, and what is behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from mlxbench_kernel.memory import Holdings, attribute, causes, find_growth

STEPS = 60
Run = tuple[list[int], list[int], list[Holdings]]


pytestmark = pytest.mark.usefixtures("counted")


def run(
    more: Callable[[dict[str, Any], int, mx.array, mx.array], None],
    *,
    often: bool = False,
    steps: int = STEPS,
) -> Run:
    """Train; `more` is what the user's loop does with its variables, the step, loss and batch.

    Memory is sampled after each step, or also in the middle of it; the variables are looked at
    after a third of the steps, and after all of them.
    """
    variables: dict[str, Any] = {}
    at, active, looks = [], [], []
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = optim.Adam(1e-3)
    mx.eval(model)
    take = nn.value_and_grad(model, lambda x: model(x).square().mean())
    variables |= {"model": model, "optimizer": optimizer}
    for step in range(steps):
        x = mx.random.normal((32, 64))
        loss, gradients = take(x)
        mx.eval(loss, gradients)
        if often:
            at.append(step)
            active.append(mx.get_active_memory())
        optimizer.update(model, gradients)
        mx.eval(model, optimizer.state)
        more(variables, step, loss, x)
        del gradients
        at.append(step)
        active.append(mx.get_active_memory())
        if step in (steps // 3, steps - 1):
            looks.append(attribute(variables))
    return at, active, looks


def nothing(variables: dict[str, Any], step: int, loss: mx.array, x: mx.array) -> None:
    pass


def append(variables: dict[str, Any], step: int, loss: mx.array, x: mx.array) -> None:
    variables.setdefault("history", {"batches": []})["batches"].append(x)


def accumulate(variables: dict[str, Any], step: int, loss: mx.array, x: mx.array) -> None:
    variables["total"] = variables.get("total", 0) + loss * x.mean()


def warm_up(variables: dict[str, Any], step: int, loss: mx.array, x: mx.array) -> None:
    if step < STEPS // 2:
        append(variables, step, loss, x)


def saturate(variables: dict[str, Any], step: int, loss: mx.array, x: mx.array) -> None:
    """As a cache by length of what comes: misses become fewer."""
    variables.setdefault("seen", {}).setdefault(int(step**0.5), x)


def empty_now_and_then(variables: dict[str, Any], step: int, loss: mx.array, x: mx.array) -> None:
    append(variables, step, loss, x)
    if step % 25 == 0:
        variables["history"]["batches"].clear()


@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize("more", [nothing, warm_up, saturate, empty_now_and_then])
def test_no_growth(more, often: bool) -> None:
    steps, active, _ = run(more, often=often)
    assert find_growth(steps, active) is None


@pytest.mark.parametrize("often", [False, True])
def test_a_list_that_is_appended_to(often: bool) -> None:
    steps, active, looks = run(append, often=often)
    found = find_growth(steps, active)
    assert found is not None
    assert found.per_step == pytest.approx(4 * 32 * 64, rel=0.05)
    assert found.bytes == pytest.approx((found.last - found.first) * found.per_step, rel=0.05)
    [cause] = causes(*looks)
    assert (cause.path, cause.kind, cause.nodes, cause.arrays) == (
        "history.batches", "variables", 0, STEPS - 1 - STEPS // 3,
    )  # fmt: skip
    assert cause.bytes == cause.arrays * 4 * 32 * 64
    assert f"history.batches holds {cause.arrays} arrays more" in cause.said


def test_a_graph_that_nobody_evaluates() -> None:
    steps, active, looks = run(accumulate)
    assert find_growth(steps, active) is not None
    [cause] = causes(*looks)
    assert (cause.path, cause.kind) == ("total", "graph")
    assert cause.nodes >= 3 * (STEPS - 1 - STEPS // 3), "mean, *, + in each step"
    assert cause.bytes >= (STEPS - 1 - STEPS // 3) * 4 * 32 * 64, "the batches behind it"
    assert "mx.eval(…, total)" in cause.said


def test_growth_on_top_of_a_sawtooth() -> None:
    def both(variables: dict[str, Any], step: int, loss: mx.array, x: mx.array) -> None:
        variables.setdefault("kept", []).append(x)
        variables.setdefault("buffer", []).append(x + 1)
        mx.eval(variables["buffer"])
        if len(variables["buffer"]) == 5:
            variables["buffer"].clear()

    steps, active, looks = run(both)
    assert find_growth(steps, active) is not None
    assert causes(*looks)[0].path == "kept"


def test_too_few_steps_say_nothing_and_slow_growth_is_none() -> None:
    steps, active, _ = run(append, steps=15)
    assert find_growth(steps, active) is None
    assert find_growth(steps, active, least=10) is not None
    large = [10**9 + 4 * step for step in range(200)]
    assert find_growth(range(200), large) is None, "a number in each step, beside a model"
    assert find_growth(range(200), large, share=0) is not None
    assert find_growth([], []) is None
    with pytest.raises(ValueError, match="zip"):
        find_growth([1, 2], [3])


def test_growth_that_began_late_is_found_and_a_long_sawtooth_is_none() -> None:
    steps, flat, _ = run(nothing, steps=2 * STEPS)
    later, rising, _ = run(append)
    found = find_growth([*steps, *(step + 2 * STEPS for step in later)], flat + rising)
    assert found is not None and found.first >= 1.7 * STEPS
    teeth = [10**6 + 1000 * (step % 100) for step in range(400)]
    assert find_growth(range(400), teeth) is None
    assert find_growth(range(100), teeth[:100]) is not None, "nothing says yet that it comes down"
