"""Conditions on what is measured: until when to train, and breakpoints.

A condition is read with `ast`, of which few nodes are known, and becomes nested closures; nothing
that a user types is evaluated as Python.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NoReturn

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training.closures import (
    ARITHMETIC,
    COMPARED,
    FUNCTIONS,
    Number,
    Record,
    Truth,
    applied,
    calculated,
    chosen,
    combined,
    compared,
    finite,
    negated,
)
from mlxbench_kernel.training.mistakes import (
    EXAMPLE,
    has_other_signs,
    listed,
    meant,
    nearest_first,
    unreadable,
)
from mlxbench_kernel.training.windows import Plateau, Spike, Usual

BREAKPOINTS = {
    "nonfinite": "nonfinite > 0 or not finite(loss)",
    "spike": "spike(loss, 3)",
    "plateau": "plateau(loss, 500)",
    "explosion": "grad_norm > 10 * usual(grad_norm)",
    "memory": "memory > 0.9 * pool",
    "replicas": "replicas_differ",
}
FLAGS = {"replicas_differ"}  # measures that are 0 or 1: conditions by themselves

_MOST_CHARACTERS = 500
_MOST_STEPS = 100_000  # of a window
_WINDOWS: dict[str, tuple[Callable[..., Usual | Spike | Plateau], dict[str, float]]] = {
    "plateau": (Plateau, {"n": 200, "by": 0.001}),
    "spike": (Spike, {"by": 2}),
    "usual": (Usual, {"n": 50}),
}
_EXAMPLES = {
    "plateau": "plateau(loss, 200, 0.001)",
    "spike": "spike(loss, 2)",
    "usual": "usual(grad_norm, 50)",
    "finite": "finite(loss)",
    "abs": "abs(loss)",
    "min": "min(loss, loss_rank)",
    "max": "max(loss, loss_rank)",
    "log": "log(loss)",
}
FAR = 100_000  # steps back and ahead, at which a condition of their number is looked at


class Condition:
    """An expression over measures, that holds at a step or not.

    Parameters
    ----------
    text
        Comparisons of measures, numbers and ``+ - * / // % **`` of them, with ``and``, ``or``,
        ``not``: ``loss < 0.1``, ``step == 500``, ``grad_norm > 10 and step > 50``. And functions:

        - ``plateau(x, n=200, by=0.001)``: the lowest of the last n steps is not lower than the
          lowest before by that share; for what shall rise, ``plateau(-x)``;
        - ``spike(x, by=2)``: x is above `by` times the median of the last 50 steps;
        - ``usual(x, n=50)``: the median of the last n steps before this one; of spikes and what is
          usual nothing is said before the sixth step;
        - ``finite(x)``, ``abs(x)``, ``log(x)``, ``min(x, y)``, ``max(x, y)``.

        Arithmetic is IEEE 754's: x / 0 is infinite; log(-1) is NaN, neither below nor above
        anything.
    measured
        The names that may be read.

    Attributes
    ----------
    names : frozenset of str
        Measures that it reads, so that they are taken at each step.

    Raises
    ------
    UsageError
        In one line what is wrong, where, and what to type.
    """

    def __init__(self, text: str, measured: Collection[str]) -> None:
        if not isinstance(text, str):
            raise UsageError(f"a condition is a text, not {text!r}: type '{EXAMPLE}'")
        self.text = " ".join(text.split())
        reading = _Reading(self.text, measured)
        self._test = reading.condition()
        self._windows = reading.windows
        self.names = frozenset(reading.names)

    def holds(self, record: Mapping[str, float]) -> bool:
        """Whether it holds at a step; to be asked once per step, in order, for it keeps windows.

        Parameters
        ----------
        record
            What was measured. A comparison with a measure that is absent does not hold.
        """
        for window in self._windows:
            window.look(record)
        return bool(self._test(record))

    def forget(self) -> None:
        """Let windows begin anew, as after going back."""
        for window in self._windows:
            window.forget()

    def __str__(self) -> str:
        return self.text


def still_to_come(text: str, measured: Collection[str], step: int) -> Condition:
    """A condition that a run from a step on goes on to.

    Parameters
    ----------
    text, measured
        As `Condition` has them.
    step
        How many were taken.

    Raises
    ------
    UsageError
        It is wrong, or of the number of a step alone, and of one that is past.
    """
    found = Condition(text, measured)
    if found.names == {"step"} and not found._windows:
        coming = (found.holds({"step": each}) for each in range(step + 1, step + FAR))
        past = (each for each in range(step, max(step - FAR, 0), -1) if found.holds({"step": each}))
        last = None if any(coming) else next(past, None)
        if last is not None:
            raise UsageError(
                f"{found.text} holds at step {last} for the last time, and this is step {step}: "
                f"%mlx_step to {last}, or stepper.to({last}), goes there"
            )
    return found


class _Window:
    """A function of the steps before. It looks at each step, also where `and` would skip it."""

    def __init__(self, argument: Number, make: Callable[[], Usual | Spike | Plateau]) -> None:
        self._argument = argument
        self._make = make
        self.forget()

    def forget(self) -> None:
        self._past = self._make()
        self._said: float | None = None

    def look(self, record: Record) -> None:
        try:
            self._said = self._past.look(self._argument(record))
        except KeyError:  # not measured at this step, which then does not count
            self._said = None

    def truth(self, record: Record) -> bool | None:
        return None if self._said is None else bool(self._said)

    def number(self, record: Record) -> float:
        if self._said is None:
            raise KeyError
        return self._said


class _Reading:
    """Turns a text into closures, and notes what it reads."""

    def __init__(self, text: str, measured: Collection[str]) -> None:
        self.names: set[str] = set()
        self.windows: list[_Window] = []  # inner ones first
        self._text = text
        self._measured = measured

    def condition(self) -> Truth:
        text = self._text
        if not text:
            self._wrong(f"it is empty: type an expression, as {EXAMPLE}")
        if len(text) > _MOST_CHARACTERS:
            self._wrong(f"it has {len(text)} characters: type {_MOST_CHARACTERS} at most")
        try:
            body = ast.parse(text, mode="eval").body
            if has_other_signs(body) and (guess := meant(text)):
                self._wrong(f"type {guess}")
            test = self._truth(body)
        except SyntaxError as error:
            self._wrong(unreadable(text, error))
        except (ValueError, MemoryError, RecursionError):
            self._wrong(f"it cannot be read: type a simpler expression, as {EXAMPLE}")
        if not self.names:
            self._wrong(f"it reads no measure: type one of {listed(self._measured)}")
        return test

    def _truth(self, node: ast.expr) -> Truth:
        match node:
            case ast.BoolOp(op, values):
                parts = [self._truth(value) for value in values]
                return combined(parts, decisive=isinstance(op, ast.Or))
            case ast.UnaryOp(ast.Not(), operand):
                return negated(self._truth(operand))
            case ast.Compare():
                return self._compared(node)
            case ast.Call(ast.Name("finite")):
                return finite(*self._numbers(node))
            case ast.Call(ast.Name("spike" | "plateau" as name)):
                return self._window(node, name).truth
            case ast.Name(name) if name in FLAGS:
                return compared(operator.ne, self._measure(node, name), lambda record: 0)
        self._number(node)  # says what is wrong inside
        piece = self._piece(node)
        self._wrong(f"{piece} is a number, which is no condition: type {piece} > 0")

    def _compared(self, node: ast.Compare) -> Truth:
        if not all(type(op) in COMPARED for op in node.ops):
            self._wrong(f"{self._piece(node)} is no comparison: type < <= > >= == or !=")
        sides = [self._number(each) for each in (node.left, *node.comparators)]
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        parts = [compared(COMPARED[type(op)], left, right) for op, left, right in pairs]
        return combined(parts, decisive=False)

    def _number(self, node: ast.expr) -> Number:
        match node:
            case ast.Name(name):
                return self._measure(node, name)
            case ast.Constant(int() | float() as value) if not isinstance(value, bool):
                number = _float(value)
                return lambda record: number
            case ast.UnaryOp(ast.USub() | ast.UAdd() as op, operand):
                inner = self._number(operand)
                return inner if isinstance(op, ast.UAdd) else lambda record: -inner(record)
            case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
                return calculated(type(op), self._number(left), self._number(right))
            case ast.Call(ast.Name("usual" as name)):
                return self._window(node, name).number
            case ast.Call(ast.Name(name)) if name in FUNCTIONS:
                return applied(name, *self._numbers(node))
            case ast.Call(ast.Name("min" | "max" as name)):
                return chosen(min if name == "min" else max, self._numbers(node, many=True))
            case ast.Call(ast.Name(name)) if name not in _EXAMPLES:
                self._unknown_function(name)
        piece = self._piece(node)
        match node:
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(ast.Not()) | ast.Call(ast.Name()):
                self._wrong(f"{piece} holds or not, it is no number: join such with and, or, not")
        self._wrong(f"{piece} is neither number nor measure: type an expression, as {EXAMPLE}")

    def _measure(self, node: ast.expr, name: str) -> Number:
        if name in self._measured:
            self.names.add(name)
            return operator.itemgetter(name)
        if name in _EXAMPLES:
            self._wrong(f"{name} is a function: type {_EXAMPLES[name]}")
        if name.lower() in ("nan", "inf"):
            self._wrong(f"{name} is no number to compare with: type not finite(loss)")
        at = self._text.encode()[: node.col_offset].decode()
        known = listed(nearest_first(name, self._measured))
        self._wrong(f"{name}, at character {len(at) + 1}, is not measured; type one of {known}")

    def _unknown_function(self, name: str) -> NoReturn:
        if name in self._measured:
            self._wrong(f"{name} is a measure, no function: type it without brackets")
        known = ", ".join(_EXAMPLES[each] for each in nearest_first(name, _EXAMPLES))
        self._wrong(f"there is no function {name}; type one of {known}")

    def _numbers(self, node: ast.Call, many: bool = False) -> list[Number]:
        """The arguments of a call: one, or two and more."""
        wanted = len(node.args) > 1 if many else len(node.args) == 1
        if node.keywords or not wanted:
            count = "two or more numbers" if many else "one number"
            self._wrong(f"{self._piece(node)} should have {count}: type {self._example(node)}")
        return [self._number(argument) for argument in node.args]

    def _window(self, node: ast.Call, name: str) -> _Window:
        make, defaults = _WINDOWS[name]
        right = f"type {self._example(node)}"
        given = dict(zip(defaults, node.args[1:], strict=False))
        if not node.args or len(node.args) > 1 + len(defaults):
            self._wrong(
                f"{self._piece(node)} should have 1 to {1 + len(defaults)} numbers: {right}"
            )
        for keyword in node.keywords:
            if keyword.arg not in defaults or keyword.arg in given:
                self._wrong(f"{name} takes no {keyword.arg or '**'}, or not twice: {right}")
            given[keyword.arg] = keyword.value
        settings = {setting: self._setting(setting, value) for setting, value in given.items()}
        window = _Window(self._number(node.args[0]), partial(make, **settings))
        self.windows.append(window)
        return window

    def _setting(self, setting: str, node: ast.expr) -> float:
        piece = self._piece(node)
        if any(isinstance(inner, (ast.Name, ast.Call)) for inner in ast.walk(node)):
            self._wrong(f"{setting} is {piece}, which is no fixed number: type one, as 100")
        value = self._number(node)({})
        if setting == "n" and not (value % 1 == 0 and 1 <= value <= _MOST_STEPS):
            self._wrong(f"n is {piece}: type a whole number of steps from 1 to {_MOST_STEPS}")
        if not 0 <= value < math.inf:
            self._wrong(f"{setting} is {piece}: type a finite number that is not negative")
        return value

    def _example(self, node: ast.Call) -> str:
        return _EXAMPLES[self._piece(node.func)]

    def _piece(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or self._text

    def _wrong(self, what: str) -> NoReturn:
        shown = self._text if len(self._text) <= 100 else f"{self._text[:100]}…"
        raise UsageError(f"condition {shown!r}: {what}") from None


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # of an int
        return math.inf
