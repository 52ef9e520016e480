"""What a user types after ``%mlx_graph``: lazy arrays, or a call that is not to be made."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.capture import Captured, captured, captured_calls
from mlxbench_kernel.graph.reaching import reached
from mlxbench_kernel.lines import EXPRESSION

_CALL = "_mlxbench_call"


def capture_expression(
    text: str,
    evaluate: Callable[[CodeType], Any],
    namespace: dict[str, Any],
    compiled: bool = True,
) -> Captured:
    """Capture what an expression stands for.

    Parameters
    ----------
    text
        An expression. Where it calls anything, as ``step(x, y)`` or ``loss_of(model(x))``, all of
        it is run as `capture` runs a function; otherwise it has to give lazy arrays.
    evaluate
        Evaluates an expression in the user's namespace (IPython's ``shell.ev``).
    namespace
        That namespace.
    compiled
        As for `capture`.

    Raises
    ------
    UsageError
        It is no expression, or as for `capture`.
    """
    text = text.strip()
    try:
        body = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UsageError(
            f"%mlx_graph: {text!r} is no expression ({error.msg}); type %mlx_graph loss "
            "or %mlx_graph step(x, y)"
        ) from None

    def value(expression: ast.expr) -> Any:
        file = EXPRESSION.format(text)
        linecache.cache[file] = (len(text), None, [text], file)  # what a traceback shows of it
        return evaluate(compile(ast.Expression(expression), file, "eval"))

    if not any(isinstance(node, ast.Call) for node in ast.walk(body)):
        target = value(body)
        if callable(target) and not hasattr(target, "parameters"):
            raise UsageError(
                f"%mlx_graph: {text} is a function: type the call that is to be shown, as "
                f"{text}(x, y)"
            )
        return captured(target, namespace=namespace, title=text, compiled=compiled)

    def run(call: Callable[..., Any]) -> Any:
        if not isinstance(body, ast.Call):
            return value(body)
        called = ast.Call(ast.Name(_CALL, ast.Load()), [body.func, *body.args], body.keywords)
        namespace[_CALL] = call
        try:
            return value(ast.fix_missing_locations(ast.copy_location(called, body)))
        finally:
            namespace.pop(_CALL, None)

    known: dict[str, Any] = {}
    for part in _variables(body):
        try:
            known.update(reached(value(part)))
        except Exception:  # it is said when the whole is evaluated
            continue
    return captured_calls(run, known, namespace, text, compiled)


def _variables(body: ast.expr) -> Iterator[ast.expr]:
    """The names in an expression, and attributes of names, as ``trainer.step``."""
    for node in ast.walk(body):
        inner = node
        while isinstance(inner, ast.Attribute):
            inner = inner.value
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(inner, ast.Name):
            yield node
