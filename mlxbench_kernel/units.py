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
    thousands = math.floor(math.log10(abs(number)) / 3) if number else 0
    thousands = min(max(thousands, -3), 5)
    return f"{number / 1000.0**thousands:.3g} {PREFIXES[thousands + 3]}"
