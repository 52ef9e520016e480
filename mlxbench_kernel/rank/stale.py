"""Names whose arrays an evaluation that was broken off may have left with any content.

MLX marks what it has scheduled as evaluated, computed or not. Such a name is refused in cells
until it is assigned again, so that no value is read that is silently wrong.
"""

from __future__ import annotations

import ast
import dis
import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import mlx.core as mx
from IPython.core.error import InputRejected
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.memory import contents

MOST = 100_000  # objects of one variable that are looked at
_BRANCHING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.Match)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_CONTAINERS = (
    dict, list, tuple, set, frozenset, deque, *_FUNCTIONS, types.GeneratorType,
)  # fmt: skip


class StaleError(InputRejected):
    """A cell uses names that were left half changed; nothing of it has run."""

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[31m{type(self).__name__}\x1b[39m: {self}"]


class StaleNames(ast.NodeTransformer):
    """The refused names of one shell; an AST transformer that rejects cells which use them.

    Parameters
    ----------
    namespace
        The user's namespace.

    Attributes
    ----------
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self._refused: dict[str, tuple[str, Any]] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Why names are refused, by name: those that still hold what they held then."""
        missing = object()
        for name, (_, value) in list(self._refused.items()):
            if self.namespace.get(name, missing) is not value:
                del self._refused[name]
        return {name: reason for name, (reason, _) in self._refused.items()}

    def settle(self, hidden: Mapping[str, Any]) -> None:
        """Take note that all there is now is complete: nothing is being evaluated."""
        module = native.load()
        if module is not None:
            module.settle([each for _, each in _arrays(self.namespace, hidden)])

    def find(self, hidden: Mapping[str, Any]) -> list[str]:
        """The names that hold arrays which may be incomplete.

        Parameters
        ----------
        hidden
            Names that the user did not make.

        Returns
        -------
        list of str
            These names.
        """
        module = native.load()
        if module is None:
            return []
        pairs = list(_arrays(self.namespace, hidden))
        flags = module.unsettled([array for _, array in pairs])
        return sorted({name for (name, _), bad in zip(pairs, flags, strict=True) if bad})

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Refuse these names, as far as they are there.

        Parameters
        ----------
        names
            Of variables.
        reason
            What happened, for the message.
        """
        there = [name for name in names if name in self.namespace]
        self._refused |= {name: (reason, self.namespace[name]) for name in there}

    def require(self, names: Iterable[str]) -> None:
        """See that none of these names is refused.

        Raises
        ------
        StaleError
            Some are; the message says which, why, and what to type.
        """
        reasons, asked = self.reasons, set(names)
        if refused := [name for name in reasons if name in asked]:
            first = refused[0]
            raise StaleError(
                f"{', '.join(refused)} may be half changed: {reasons[first]}. Assign "
                f"{'it' if len(refused) == 1 else 'them'} again (or type {first} = {first} in a "
                "line of its own to go on with what is there); nothing of this cell has run"
            )

    def visit(self, node: ast.AST) -> ast.AST:
        """Look at a whole cell.

        Raises
        ------
        StaleError
            It uses refused names; nothing of it has run.
        """
        if not self._refused or not isinstance(node, ast.Module):
            return node
        accepted = {name for each in node.body if (name := _accepted(each)) is not None}
        self.require(_used(node, self.namespace) - accepted)
        for name in accepted:
            self._refused.pop(name, None)
        return node


def _accepted(statement: ast.stmt) -> str | None:
    """The name in ``name = name``."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=value)):
            return target if target == value else None
    return None


def _used(tree: ast.Module, namespace: Mapping[str, Any]) -> set[str]:
    """Names that a cell reads, itself or by functions of the user, before it has assigned them.

    What is assigned in a branch or a loop counts as assigned only there.
    """
    used: set[str] = set()
    assigned: set[str] = set()
    later: list[types.CodeType] = []  # what functions use is used later, if at all
    for statement in tree.body:
        alone = ast.Module([statement], [])
        code = compile(alone, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        within = set(assigned)
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_NAME":
                used |= _reached({instruction.argval} - within, namespace) - within
            elif instruction.opname == "STORE_NAME":
                within.add(instruction.argval)
        if not isinstance(statement, _BRANCHING):
            assigned = within
        later += _inner(code)
    for inner in later:
        used |= _reached(_globals(inner) - assigned, namespace) - assigned
    return used


def _reached(names: Iterable[str], namespace: Mapping[str, Any]) -> set[str]:
    """The names, with those that functions of the user among them use."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            for function in _functions(namespace.get(name)):
                waiting += _globals(function.__code__)
    return reached


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The functions behind a value: itself, what MLX, functools or a method wraps, the methods
    of the user's classes, and what containers of functions hold."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, types.ModuleType):
            continue
        seen.add(id(value))
        kind = value if isinstance(value, type) else type(value)
        if _is_the_users(kind) and kind.__module__.split(".")[0] != "mlx":
            waiting += [each for each in vars(kind).values() if callable(each)]
        if isinstance(value, types.FunctionType):
            yield value
            waiting += _contents(value.__closure__ or ())
        elif isinstance(value, types.MethodType):
            waiting.append(value.__func__)
        elif isinstance(value, (dict, list, tuple)) and not isinstance(value, Module):
            inside = value.values() if isinstance(value, dict) else value
            waiting += [each for each in islice(inside, MOST) if isinstance(each, _FUNCTIONS)]
        elif type(value).__module__ in ("functools", "mlx", "mlx.core", "mlx.gc"):
            waiting += [each for each in gc.get_referents(value) if callable(each)]


def _globals(code: types.CodeType) -> set[str]:
    """Global names that a function reads, also by functions inside it."""
    found = {
        instruction.argval
        for each in (code, *_inner(code))
        for instruction in dis.get_instructions(each)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return found


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _inner(constant)


def _arrays(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arrays that the user's variables hold, with the name of the variable."""
    openers: dict[type, contents.Opener | None] = {}
    for name, value in list(namespace.items()):
        if name in hidden or contents.is_own_name(name):
            continue
        waiting, seen = [value], set[int]()  # what has two names is found under both
        while waiting and len(seen) < MOST:
            value = waiting.pop()
            kind = type(value)
            if kind not in openers:
                openers[kind] = _opener(kind)
            if isinstance(value, mx.array):
                yield name, value
            elif (opener := openers[kind]) is not None and id(value) not in seen:
                seen.add(id(value))
                waiting += [
                    each for _, each in opener(value, MOST) if type(each) not in contents.PLAIN
                ]


def _opener(kind: type) -> contents.Opener | None:
    """How to look into instances of a class, as far as arrays may be among what they hold."""
    return contents.opener(kind) if issubclass(kind, _CONTAINERS) or _is_the_users(kind) else None


def _contents(cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # empty
            pass


def _is_the_users(kind: type) -> bool:
    """Whether instances of a class may hold arrays: MLX's, and those made in cells or files of
    the user; not a figure's or a logger's, which hold thousands of other things, and not our own:
    a stepper keeps hundreds of states, and sees to them itself."""
    root = kind.__module__.split(".")[0]
    if root == __name__.split(".")[0]:
        return False
    if root in ("mlx", "mlx_lm", "__main__"):
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return bool(file) and "site-packages" not in file and root not in sys.stdlib_module_names
