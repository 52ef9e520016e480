"""Bytes and other quantities for a person to read."""

from __future__ import annotations

import math
import re

from mlxbench_kernel.errors import UsageError

PREFIXES = ("n", "µ", "m", "", "k", "M", "G", "T", "P")
UNITS = ("B", "kB", "MB", "GB", "TB")
_SIZE = re.compile(r"(-?\d+(?:\.\d*)?|-?\.\d+)\s*(%|[kmgt]?b?|[kmgt]ib?)", re.IGNORECASE)


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


def parse_bytes(size: int | str, whole: int | None = None) -> int:
    """Read a number of bytes as a person writes it.

    Parameters
    ----------
    size
        Bytes, or text: ``"4GB"`` and ``"4G"`` in powers of 1000 as `format_bytes` writes them,
        ``"512 MiB"`` in powers of 1024, ``"75%"`` of `whole`, ``"4096"`` for bytes.
    whole
        Bytes of what percent are of; None where there are none.

    Returns
    -------
    int
        Whole bytes.

    Raises
    ------
    UsageError
        It is not a size, or negative.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        count = size
    else:
        match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
        unit = match.group(2).lower() if match else ""
        if match is None or (unit == "%" and whole is None):
            kinds = "bytes, 4GB, 512MiB" + (" or 75%" if whole is not None else "")
            raise UsageError(f"{size!r} is not a size: type {kinds}")
        if unit == "%":
            factor = (whole or 0) / 100
        else:
            power = "bkmgt".index(unit[:1] or "b")
            factor = float((1024 if "i" in unit else 1000) ** power)
        count = int(float(match.group(1)) * factor)
    if count < 0:
        raise UsageError(f"a size cannot be negative, as {size!r} is: type 0 or more")
    return count


def quantity(number: float) -> str:
    """A number with three digits and a prefix of the SI, to stand before a unit: ``1.23 G``."""
    rounded = abs(float(f"{number:.3g}"))  # 999.7 is written as a thousand
    thousands = math.floor(math.log10(rounded) / 3) if rounded else 0
    thousands = min(max(thousands, -3), 5)
    return f"{number / 1000.0**thousands:.3g} {PREFIXES[thousands + 3]}"


def duration(seconds: float) -> str:
    """How long something was or is ago: ``0.4 s``, ``12 s``, ``3 min``, ``5 h``."""
    if seconds < 120:
        return f"{round(seconds, 1):g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def ratio(number: float) -> str:
    """A number with two digits, or all before the point: ``0.25``, ``4.5``, ``1,365``."""
    return f"{number:,.0f}" if abs(number) >= 99.5 else f"{number:.2g}"
