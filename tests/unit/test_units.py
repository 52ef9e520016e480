"""Numbers as a person reads them: never with an exponent."""

from __future__ import annotations

import pytest

from mlxbench_kernel.units import quantity, ratio


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 "), (0.0436, "43.6 m"), (1.387, "1.39 "), (999.4, "999 "), (999.7, "1 k"),
     (0.9997, "1 "), (999_700, "1 M"), (-2_500, "-2.5 k")],
)  # fmt: skip
def test_quantities_have_three_digits_and_a_prefix(number: float, text: str) -> None:
    assert quantity(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.2, "0.2"), (0.254, "0.25"), (4, "4"), (99.4, "99"), (99.9, "100"), (1365.3, "1,365")],
)
def test_ratios_have_two_digits_or_all_before_the_point(number: float, text: str) -> None:
    assert ratio(number) == text
