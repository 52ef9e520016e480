"""Bytes and other quantities for a person to read."""

from __future__ import annotations

import math

PREFIXES = ("n", "µ", "m", "", "k", "M", "G", "T", "P")
UNITS = ("B", "kB", "MB", "GB", "TB")


def format_bytes(count: float) -> str:
    """Write a number of bytes with three digits and a unit: ``"12.3 GB"``.

    Parameters
    ----------
    count
        Bytes.

    Returns
    -------
    str
        In powers of 1000, as mlx-lm prints its peak memory, so that the figures compare.
    """
    power = 0
    while abs(count) >= 999.5 and power < len(UNITS) - 1:
        count /= 1000
        power += 1
    digits = 0 if power == 0 or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {UNITS[power]}"


def quantity(number: float) -> str:
    """A number with three digits and a prefix of the SI, to stand before a unit: ``1.23 G``."""
    rounded = abs(float(f"{number:.3g}"))  # 999.7 is written as a thousand
    thousands = math.floor(math.log10(rounded) / 3) if rounded else 0
    thousands = min(max(thousands, -3), 5)
    return f"{number / 1000.0**thousands:.3g} {PREFIXES[thousands + 3]}"


def ratio(number: float) -> str:
    """A number with two digits, or all before the point: ``0.25``, ``4.5``, ``1,365``."""
    return f"{number:,.0f}" if abs(number) >= 99.5 else f"{number:.2g}"
