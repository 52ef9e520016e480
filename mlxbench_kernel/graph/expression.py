"""What a user types after ``%mlx_graph``: lazy arrays, or a call that is not to be made."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.capture import Captured, captured, captured_call

_PARTS = "_mlxbench_parts"


def capture_expression(
    text: str,
    evaluate: Callable[[str], Any],
    namespace: dict[str, Any],
    compiled: bool = True,
) -> Captured:
    """Capture what an expression stands for.

    Parameters
    ----------
    text
        An expression. Where it is a call, as ``step(x, y)``, its function and arguments are
        evaluated, and the call is captured; everything else has to give lazy arrays.
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
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(
            f"%mlx_graph: {text.strip()!r} is no expression ({error.msg}); type %mlx_graph loss "
            "or %mlx_graph step(x, y)"
        ) from None
    if not isinstance(body, ast.Call):
        return captured(evaluate(text), namespace=namespace, title=text, compiled=compiled)
    parts = ast.Call(ast.Name(_PARTS), [body.func, *body.args], body.keywords)
    namespace[_PARTS] = lambda function, *arguments, **keywords: (function, arguments, keywords)
    try:
        function, arguments, keywords = evaluate(ast.unparse(parts))
    finally:
        namespace.pop(_PARTS, None)
    return captured_call(function, arguments, keywords, namespace, text, compiled)
