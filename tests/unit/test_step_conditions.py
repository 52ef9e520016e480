"""Conditions that a user types: what they hold for, what they remember, what is said of slips."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training.conditions import BREAKPOINTS, Condition

MEASURED = [
    "step",
    "loss",
    "loss_rank",
    "learning_rate",
    "grad_norm",
    "nonfinite",
    "elapsed",
    "memory",
    "pool",
    "replicas_differ",
]


def holding(text: str, losses: list[float], name: str = "loss") -> list[int]:
    """Steps, from 0, at which a condition holds."""
    condition = Condition(text, MEASURED)
    return [step for step, x in enumerate(losses) if condition.holds({"step": step, name: x})]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("loss < 0.1", False),
        ("loss < 1e0", True),
        ("loss<=.5", True),
        ("0.1 < loss < 0.6", True),
        ("0.1 < loss < 0.4", False),
        ("step == 500", True),
        ("step != 500", False),
        ("step % 100 == 0 and not loss > 1", True),
        ("loss > 1 or (step > 50 and grad_norm >= 10)", True),
        ("loss * 2 - 1 + 0 == 0", True),
        ("loss ** 2 == 0.25 and step // 7 == 71", True),
        ("-loss < +loss", True),
        ("abs(-loss) == 0.5 and log(grad_norm) > 2.3", True),
        ("min(loss, step, 3) == 0.5 and max(loss, step) == 500", True),
        ("grad_norm / (loss - 0.5) > 1e300", True),  # infinite, as in IEEE 754
        ("log(loss - 0.5) < -1e300", True),
        ("log(-loss) < 1 or log(-loss) > 1", False),
        ("(-loss) ** 0.5 < 1 or (-loss) ** 0.5 > 1", False),
        ("step ** 1000 > 1e300", True),
        ("step % (loss - 0.5) == 0", False),
        ("finite(loss) and not finite(loss / 0)", True),
        ("not finite(max(loss, 0 / 0))", True),
        ("  loss\n < 1 ", True),
        ("replicas_differ", False),
        ("not replicas_differ", True),
    ],
)
def test_expressions(text: str, holds: bool) -> None:
    record = {"step": 500, "loss": 0.5, "grad_norm": 10.0, "replicas_differ": 0}
    assert Condition(text, MEASURED).holds(record) is holds


def test_nan_is_neither_below_nor_above() -> None:
    record = {"loss": math.nan}
    assert not Condition("loss < 1 or loss > 0 or loss == loss", MEASURED).holds(record)
    assert Condition("not finite(loss)", MEASURED).holds(record)


def test_names_are_what_it_reads() -> None:
    condition = Condition("spike(loss - loss_rank, 3) or step > 5", MEASURED)
    assert condition.names == {"loss", "loss_rank", "step"}
    assert str(condition) == "spike(loss - loss_rank, 3) or step > 5"
    assert Condition("max < 3", ["max"]).names == {"max"}  # a user's metric


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("nonfinite > 0", False),
        ("not nonfinite > 0", False),
        ("nonfinite > 0 or loss < 1", True),
        ("loss < 1 or nonfinite > 0", True),
        ("nonfinite > 0 and loss < 1", False),
        ("not (nonfinite > 0 and loss > 1)", True),
        ("0 < loss < nonfinite", False),
        ("finite(nonfinite)", False),
        ("not finite(nonfinite + 1)", False),
        ("min(loss, nonfinite) < 1", False),
        ("not spike(nonfinite)", False),
        ("usual(nonfinite) < 1", False),
    ],
)
def test_what_was_not_measured_is_unknown(text: str, holds: bool) -> None:
    assert Condition(text, MEASURED).holds({"loss": 0.5}) is holds


def test_usual_is_the_median_of_the_steps_before() -> None:
    values = np.random.default_rng(1).normal(size=300).round(1).tolist()
    values[100:103] = [math.nan, math.inf, -math.inf]
    for n in (1, 2, 7, 50):
        condition = Condition(f"loss > usual(loss, {n})", MEASURED)
        for step, value in enumerate(values):
            before = [x for x in values[:step] if math.isfinite(x)][-n:]
            known = len(before) >= min(n, 5)
            expected = known and value > float(np.median(before))
            assert condition.holds({"loss": value}) is expected, (n, step)


def test_a_spike_is_far_above_what_is_usual() -> None:
    flat = [1.0] * 60
    assert holding("spike(loss)", [*flat, 2.1, 1.0, 1.9, math.inf, math.nan, 1.0]) == [60, 63]
    assert holding("spike(loss, by=3)", [*flat, 2.1, 3.1]) == [61]
    assert holding("spike(loss)", [100.0, *flat[:4], 100.0]) == [5]  # five before are enough
    assert holding("spike(loss)", [1.0, 100.0]) == []
    assert holding("spike(loss)", [-2.0] * 60 + [-1.9, 1.0]) == [61]


def test_a_plateau_is_where_the_best_is_no_better_than_before() -> None:
    rng = np.random.default_rng(2)
    values = (
        np.concatenate([np.linspace(5, 1, 100), np.ones(100)]) + rng.normal(size=200)
    ).tolist()
    values[150:152] = [math.nan, math.inf]
    for n, by in ((1, 0.0), (10, 0.001), (40, 0.2)):
        condition = Condition(f"plateau(loss, {n}, by={by})", MEASURED)
        for step, value in enumerate(values):
            seen = [math.inf if math.isnan(x) else x for x in values[: step + 1]]
            before, last = seen[:-n], seen[-n:]
            expected = bool(before) and min(last) >= min(before) - by * abs(min(before))
            assert condition.holds({"loss": value}) is expected, (n, step)


def test_a_plateau_of_what_should_rise_or_is_lost() -> None:
    rising = [float(x) for x in range(30)]
    assert holding("plateau(-loss, 5)", rising) == []
    assert holding("plateau(loss, 5)", rising) == list(range(5, 30))
    assert holding("plateau(loss, 3)", [math.nan] * 5) == [3, 4]
    assert holding("plateau(loss, 3)", [math.nan, *rising[:3]]) == []
    assert holding("plateau(loss, 3)", [5.0, math.nan, 1.0, 1.0]) == []


def test_windows_look_at_each_step_whatever_the_rest_says() -> None:
    losses = [1.0] * 20 + [9.0]
    assert holding("step > 10 and spike(loss)", losses) == [20]
    assert holding("step < 20 or loss > 3 * usual(loss)", losses) == list(range(21))
    assert holding("usual(usual(loss, 1), 1) > 5", [*losses, 9, 9, 9]) == [22, 23]


def test_windows_skip_steps_without_the_measure() -> None:
    condition = Condition("spike(loss)", MEASURED)
    for _ in range(10):
        assert not condition.holds({"loss": 1.0})
        assert not condition.holds({"step": 1})
    assert condition.holds({"loss": 3.0})


def test_windows_begin_anew_after_going_back() -> None:
    condition = Condition("spike(loss) or plateau(loss, 3)", MEASURED)
    first = [condition.holds({"loss": x}) for x in (1.0,) * 6]
    condition.forget()
    assert [condition.holds({"loss": x}) for x in (1.0,) * 6] == first
    assert first == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("nonfinite", {"nonfinite": 3, "loss": 1.0}),
        ("nonfinite", {"loss": math.nan}),
        ("spike", {"loss": 3.5}),
        ("plateau", {"loss": 1.0}),
        ("explosion", {"grad_norm": 11.0}),
        ("memory", {"memory": 95.0, "pool": 100.0}),
        ("replicas", {"replicas_differ": 1}),
    ],
)
def test_breakpoints(name: str, record: dict[str, float]) -> None:
    condition = Condition(BREAKPOINTS[name], MEASURED)
    usual = {
        "loss": 1.0,
        "grad_norm": 1.0,
        "memory": 50.0,
        "pool": 100.0,
        "nonfinite": 0,
        "replicas_differ": 0,
    }
    assert not any(condition.holds(usual) for _ in range(500))
    assert condition.holds(record)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty: type an expression, as loss < 0.1"),
        ("losss < 0.1", "losss, at character 1, is not measured; type one of loss, loss_rank"),
        (
            "step > 5 and lr < 1",
            "lr, at character 14, is not measured; type one of loss_rank, learning_rate",
        ),
        ("loss = 0.1", "type loss == 0.1"),
        ("step = 9 and plateau(loss, n=20)", "type step == 9 and plateau(loss, n=20)"),
        ("loss < 0.1 & step > 5", "type loss < 0.1 and step > 5"),
        ("loss < 0.1 || step > 5", "type loss < 0.1 or step > 5"),
        ("loss < 0.1 OR NOT step > 5", "type loss < 0.1 or not step > 5"),
        ("!finite(loss)", "type not finite(loss)"),
        ("~finite(loss)", "type not finite(loss)"),
        ("loss ≤ 0.1", "type loss <= 0.1"),
        ("loss =< 0.1", "type loss <= 0.1"),
        ("loss < 0,1", "type loss < 0.1"),
        ("loss^2 < 1", "type loss**2 < 1"),
        ("elapsed > 10 min", "type elapsed > 600"),
        ("memory > 1.5GB", "type memory > 1500000000"),
        ("memory > 90% * pool", "type memory > 0.9 * pool"),
        ("(loss < 3", "type (loss < 3)"),
        ("loss <", "it ends after <: type what to compare with, as loss < 0.1"),
        ("loss < 0.1 and", "it ends after and: type what follows"),
        ("loss < 3)", "it cannot be read at character 9"),
        ("loss below 3", "it cannot be read at character 6, 'below 3'"),
        ("loss\0 < 3", "it cannot be read"),
        ("loss", "loss is a number, which is no condition: type loss > 0"),
        ("loss < 3 and loss + 1", "loss + 1 is a number, which is no condition"),
        ("finite(loss) > 1", "finite(loss) holds or not, it is no number"),
        ("(loss < 1) + 1 > 0", "loss < 1 holds or not, it is no number"),
        ("loss == nan", "nan is no number to compare with: type not finite(loss)"),
        ("loss is 3", "loss is 3 is no comparison: type < <="),
        ("1 < 2", "it reads no measure: type one of step, loss"),
        ("plateau > 3", "plateau is a function: type plateau(loss, 200, 0.001)"),
        ("median(loss) > 3", "there is no function median; type one of"),
        ("loss(3) > 1", "loss is a measure, no function: type it without brackets"),
        ("abs(loss, 2) > 1", "abs(loss, 2) should have one number: type abs(loss)"),
        ("min(loss) < 3", "min(loss) should have two or more numbers: type min(loss, loss_rank)"),
        ("plateau()", "plateau() should have 1 to 3 numbers: type plateau(loss, 200, 0.001)"),
        ("spike(loss, 2, 3)", "spike(loss, 2, 3) should have 1 to 2 numbers"),
        ("spike(loss, n=3)", "spike takes no n, or not twice: type spike(loss, 2)"),
        ("plateau(loss, 2, n=3)", "plateau takes no n, or not twice"),
        ("spike(loss, grad_norm)", "by is grad_norm, which is no fixed number"),
        ("spike(loss, -1)", "by is -1: type a finite number that is not negative"),
        ("spike(loss, 1e999)", "by is 1e999: type a finite number"),
        ("plateau(loss, 0.5)", "n is 0.5: type a whole number of steps from 1 to 100000"),
        ("usual(loss, 1e9) > 1", "n is 1e9: type a whole number of steps from 1 to 100000"),
        ("usual(loss, 0/0) > 1", "n is 0/0: type a whole number"),
        ("True", "True is neither number nor measure"),
        ("loss < 'a'", "'a' is neither number nor measure"),
        ("loss < 3j", "3j is neither number nor measure"),
        ("model.loss < 3", "model.loss is neither number nor measure"),
        ("__import__('os').system('x')", "is neither number nor measure"),
        ("(lambda: 3)() < loss", "is neither number nor measure"),
        ("spike(*loss)", "*loss is neither number nor measure"),
        ("loss < 1 if step else 0", "is neither number nor measure"),
        ("loss < " + "1" * 600, "it has 607 characters: type 500 at most"),
        ("(" * 300 + "loss", "it cannot be read"),
    ],
)
def test_slips_are_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Condition(text, MEASURED)
    message = str(caught.value)
    assert said in message and message.startswith("condition ")
    assert message.isprintable() and len(message) < 500  # one line


def test_what_is_not_a_text_is_said() -> None:
    with pytest.raises(UsageError, match=r"a condition is a text, not 0\.1: type"):
        Condition(0.1, MEASURED)  # type: ignore[arg-type]


def test_many_measures_are_listed_nearest_first_and_counted() -> None:
    own = [f"metric_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    with pytest.raises(UsageError) as caught:
        Condition("metric_zz > 1", [*own, *MEASURED])
    assert "type one of metric_z, metric_" in str(caught.value)
    assert str(caught.value).endswith(" and 16 more")


def test_deep_expressions_are_read_or_refused() -> None:
    assert Condition("-" * 90 + "1 < loss", MEASURED).holds({"loss": 2.0})
    many = " and ".join(["loss < 1"] * 35)
    assert Condition(many, MEASURED).holds({"loss": 0.5})
    assert not Condition(many, MEASURED).holds({"loss": 1.5})
