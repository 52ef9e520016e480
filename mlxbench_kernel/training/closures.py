"""What conditions are made of: closures over a record, for numbers and for what holds or not.

A number raises KeyError where a measure is absent from the record. What holds or not is then
unknown (None), and unknown parts combine as in Kleene's logic: ``a or b`` holds where b does.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, float]
Number = Callable[[Record], float]
Truth = Callable[[Record], bool | None]

COMPARED: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
# Python's operation, and NumPy's for where Python's raises (x / 0).
ARITHMETIC: dict[type[ast.operator], tuple[Callable[[float, float], float], np.ufunc]] = {
    ast.Add: (operator.add, np.add),
    ast.Sub: (operator.sub, np.subtract),
    ast.Mult: (operator.mul, np.multiply),
    ast.Div: (operator.truediv, np.true_divide),
    ast.FloorDiv: (operator.floordiv, np.floor_divide),
    ast.Mod: (operator.mod, np.mod),
    ast.Pow: (math.pow, np.power),
}
FUNCTIONS: dict[str, tuple[Callable[[float], float], np.ufunc]] = {
    "abs": (abs, np.abs),
    "log": (math.log, np.log),
}


def compared(op: Callable[[float, float], bool], left: Number, right: Number) -> Truth:
    def truth(record: Record) -> bool | None:
        try:
            return op(left(record), right(record))
        except KeyError:
            return None

    return truth


def finite(inner: Number) -> Truth:
    def truth(record: Record) -> bool | None:
        try:
            return math.isfinite(inner(record))
        except KeyError:
            return None

    return truth


def negated(inner: Truth) -> Truth:
    def truth(record: Record) -> bool | None:
        holds = inner(record)
        return None if holds is None else not holds

    return truth


def combined(parts: Sequence[Truth], decisive: bool) -> Truth:
    """Joined by ``or`` where True is decisive, by ``and`` where False is."""
    if len(parts) == 1:
        return parts[0]

    def truth(record: Record) -> bool | None:
        unknown = False
        for part in parts:
            holds = part(record)
            if holds is None:
                unknown = True
            elif bool(holds) is decisive:
                return decisive
        return None if unknown else not decisive

    return truth


def calculated(kind: type[ast.operator], left: Number, right: Number) -> Number:
    plain, ieee = ARITHMETIC[kind]

    def number(record: Record) -> float:
        one, other = left(record), right(record)
        try:
            return plain(one, other)
        except (ArithmeticError, ValueError):
            return _ieee(ieee, one, other)

    return number


def applied(name: str, inner: Number) -> Number:
    plain, ieee = FUNCTIONS[name]

    def number(record: Record) -> float:
        value = inner(record)
        try:
            return plain(value)
        except ValueError:
            return _ieee(ieee, value)

    return number


def chosen(choose: Callable[[list[float]], float], parts: Sequence[Number]) -> Number:
    """The lowest or the highest; NaN where one is NaN."""

    def number(record: Record) -> float:
        values = [part(record) for part in parts]
        return math.nan if any(map(math.isnan, values)) else choose(values)

    return number


def _ieee(operation: np.ufunc, *values: Any) -> float:
    with np.errstate(all="ignore"):
        return float(operation(*map(np.float64, values)))
