"""Refuses cells for some ranks only that call a collective of all of them."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from IPython.core.inputtransformer2 import TransformerManager

from mlxbench_kernel.errors import UsageError

_WHOLE = frozenset({"all_sum", "all_gather", "all_max", "all_min", "sum_scatter"})
_IN_NN = frozenset({"average_gradients"})


def check_alone(code: str, ranks: Sequence[int], shift: int = 0) -> None:
    """See that a cell which does not run on all ranks calls no collective of all ranks.

    What is hidden in functions, compiled or lazy, the ranks themselves refuse when it would be
    executed.

    Parameters
    ----------
    code
        Source of the cell.
    ranks
        Where it is to run.
    shift
        What its line numbers lack.

    Raises
    ------
    UsageError
        It does; nothing was sent.
    """
    try:
        tree = ast.parse(TransformerManager().transform_cell(code))
    except (SyntaxError, ValueError):
        return  # the ranks say so better
    found = _Calls()
    found.visit(tree)
    if found.first is not None:
        call, name = found.first
        blank = len(code) - len(code.lstrip("\n"))  # IPython has dropped these lines
        where = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        raise UsageError(
            f"line {call.lineno + blank + shift} calls {name} of the whole group, but the cell is "
            f"for {where} only, and the others would not take part: run it without --ranks. "
            "Nothing has run"
        )


class _Calls(ast.NodeVisitor):
    """The first call of a collective that is made when the cell runs."""

    def __init__(self) -> None:
        self.first: tuple[ast.Call, str] | None = None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """What is only defined is not called."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """See `visit_FunctionDef`."""

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """See `visit_FunctionDef`."""

    def visit_Call(self, node: ast.Call) -> None:
        """Note the call if it is a collective of the group that everybody has."""
        match node.func:
            case ast.Attribute(value=ast.Attribute(attr="distributed"), attr=name) if (
                name in _WHOLE
            ):
                self._note(node, name)
            case ast.Attribute(value=ast.Name(id="nn"), attr=name) if name in _IN_NN:
                self._note(node, name)
        self.generic_visit(node)

    def _note(self, node: ast.Call, name: str) -> None:
        groups = [each.value for each in node.keywords if each.arg == "group"]
        whole = not groups or (isinstance(groups[0], ast.Name) and groups[0].id == "group")
        if whole and self.first is None:
            self.first = (node, name)
