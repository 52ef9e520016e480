"""Which module a node belongs to, noted while modules are called; `placing` concludes the rest."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxbench_kernel import native
from mlxbench_kernel.graph.model import Graph, Scope
from mlxbench_kernel.graph.placing import OPTIMIZER, Noted, placed
from mlxbench_kernel.graph.trees import arrays_in

Call = Callable[..., Any]

COMPILED = (
    "modules in a compiled function are told by their parameters only: --uncompiled, or "
    "capture(…, compiled=False), shows all of them"
)


class ModulePaths(dict[int, Scope]):
    """The scopes of modules by their ids.

    Attributes
    ----------
    parameters : dict of int to Scope
        The scope of the module that holds an array, by MLX's id of the array.
    by_path : dict of str to Scope
        By the path, also by those that lead to the same module.
    """

    def __init__(self) -> None:
        self.parameters: dict[int, Scope] = {}
        self.by_path: dict[str, Scope] = {}


def module_paths(modules: Mapping[str, Module]) -> ModulePaths:
    """The scope of each module, by its id, and of the arrays that it holds.

    Parameters
    ----------
    modules
        The user's modules by the names of their variables. A part of another one has the path
        that it has there, the first one if there are several; where there are several modules,
        paths begin with the variable's name.
    """
    parts = {name: module.named_modules() for name, module in modules.items()}
    inner = {id(part) for found_parts in parts.values() for path, part in found_parts if path}
    outer: dict[int, tuple[str, list[tuple[str, Module]]]] = {}
    for name, found_parts in parts.items():
        # The first is the module itself, also of what mx.compile made of it.
        module = found_parts[0][1]
        if id(module) not in inner:
            outer.setdefault(id(module), (name, found_parts))
    found, library = ModulePaths(), native.load()
    for name, found_parts in outer.values():
        # A module is told before its parts, the last part first: turned round, the first is first.
        for path, part in reversed(found_parts):
            whole = ".".join(each for each in (name if len(outer) > 1 else "", path) if each)
            scope = found.setdefault(id(part), Scope(whole, type(part).__name__))
            found.by_path[whole] = scope
            if library is not None:
                for array in _own_arrays(part):
                    found.parameters.setdefault(library.array_id(array), scope)
    return found


def _own_arrays(module: Module) -> list[mx.array]:
    """The arrays that a module holds itself, not in a part that is a module."""
    found: list[mx.array] = []
    waiting: list[Any] = list(module.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, mx.array):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, dict) and not isinstance(value, Module):
            waiting += value.values()
    return found


class Scoping:
    """Notes which nodes are made while a module is called, or an optimizer updates.

    Parameters
    ----------
    paths
        From `module_paths`.

    Attributes
    ----------
    gradients : list of (str, mlx.core.array)
        What optimizers were given, by the paths of the parameters.
    """

    def __init__(self, paths: ModulePaths) -> None:
        self._paths = paths
        self._scopes: dict[Scope, int] = {Scope(""): 0}
        module = native.load()
        self._marker = None if module is None else module.Marker()
        self._handle = None if module is None else module.handle
        self.gradients: list[tuple[str, mx.array]] = []
        self._gradient_ids: dict[int, int] = {}
        self._updating: Scope | None = None
        self._ids = np.zeros(0, np.uint64)
        self._marks = np.zeros(0, np.int32)
        self._noting = False
        self._thread = 0  # that captures; other threads' calls are none of the graph's

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Modules and optimizers that are called in the block are noted."""
        if self._marker is None:
            yield
            return
        self._noting, self._thread = True, threading.get_ident()
        changed: list[tuple[type, str, Any]] = []

        def wrap(kind: type, name: str, wrapped: Call) -> None:
            changed.append((kind, name, kind.__dict__[name]))
            setattr(kind, name, wrapped)

        try:
            for kind in _kinds(Module, "__call__"):
                wrap(kind, "__call__", self._called(kind.__dict__["__call__"]))
            for name in ("update", "apply_gradients"):  # the one calls the other, or either alone
                for kind in _kinds(optim.Optimizer, name):
                    wrap(kind, name, self._updated(kind.__dict__[name], name))
            yield
        finally:
            for kind, name, original in reversed(changed):
                setattr(kind, name, original)
            self._ids, self._marks = self._marker.take()

    def _number(self, scope: Scope) -> int:
        return self._scopes.setdefault(scope, len(self._scopes))

    def _called(self, original: Call) -> Call:
        @functools.wraps(original)
        def call(module: Module, *arguments: Any, **keywords: Any) -> Any:
            scope, handle = self._paths.get(id(module)), self._handle
            other = threading.get_ident() != self._thread
            if other or scope is None or self._marker is None or handle is None:
                return original(module, *arguments, **keywords)
            # Handles: an array object that is changed in place is another array afterwards.
            before = [handle(array) for array in arrays_in([arguments, keywords])]
            since = self._marker.count()
            result = original(module, *arguments, **keywords)
            # Running statistics, caches and the like are made in the call, and are no result.
            made = [*arrays_in([result, arguments, keywords]), *_own_arrays(module)]
            self._marker.mark(made, before, self._number(scope), since)
            return result

        return call

    def _updated(self, original: Call, name: str) -> Call:
        @functools.wraps(original)
        def update(optimizer: optim.Optimizer, *arguments: Any, **keywords: Any) -> Any:
            other = threading.get_ident() != self._thread
            # In an update that is going on, it is a part of another one's.
            if other or self._marker is None or self._updating is not None:
                return original(optimizer, *arguments, **keywords)
            before = arrays_in([optimizer, arguments, keywords])
            parameters, gradients = _given(name, arguments, keywords)
            self._note_gradients(parameters, gradients)
            since = self._marker.count()
            self._updating = Scope(OPTIMIZER, type(optimizer).__name__)
            try:
                result = original(optimizer, *arguments, **keywords)
            finally:
                scope, self._updating = self._updating, None
            made = arrays_in([result, optimizer, arguments, keywords])
            self._marker.mark(made, before, self._number(scope), since)
            return result

        return update

    def _note_gradients(self, parameters: Any, gradients: Any) -> None:
        """Each gradient belongs to the module that holds its parameter."""
        library = native.load()
        if library is None or self._marker is None:
            return
        model = self._paths.get(id(parameters))
        known = {} if model is not None else dict(_flat(parameters))
        for path, array in _flat(gradients):
            if model is not None:
                whole = f"{model.path}.{path}" if model.path else path
                scope = self._paths.by_path.get(_module_of(whole, self._paths.by_path))
            else:
                whole, parameter = path, known.get(path)
                number = -1 if parameter is None else library.array_id(parameter)
                scope = self._paths.parameters.get(number)
                if scope is not None and scope.path:
                    whole = f"{scope.path}.{path.rpartition('.')[2]}"
            self.gradients.append((whole, array))
            self._gradient_ids[library.array_id(array)] = (
                -1 if scope is None else self._number(scope)
            )

    def apply(self, graph: Graph) -> Graph:
        """The graph with scopes and phases."""
        known = np.full(graph.nodes, -1, np.int32)
        known[graph.node] = _looked_up(graph.id, self._ids, self._marks)
        held = np.full(graph.nodes, -1, np.int32)
        ids = np.fromiter(self._paths.parameters, np.uint64, len(self._paths.parameters))
        scopes = [self._number(scope) for scope in self._paths.parameters.values()]
        held[graph.node] = _looked_up(graph.id, ids, np.array(scopes, np.int32))
        gradient = np.full(graph.nodes, -2, np.int32)
        ids = np.fromiter(self._gradient_ids, np.uint64, len(self._gradient_ids))
        numbers = np.fromiter(self._gradient_ids.values(), np.int32, len(self._gradient_ids))
        gradient[graph.node] = _looked_up(graph.id, ids, numbers, -2)
        gradient[graph.primitive == 0] = -2
        noted = Noted(known, held, gradient, called=self._noting and bool((known >= 0).any()))
        if not noted.called and (held < 0).all():
            return graph
        graph = placed(graph, noted, self._scopes, {s.path: s for s in self._paths.values()})
        return graph.with_(hint=COMPILED) if self._is_compiled(graph, noted) else graph

    def _is_compiled(self, graph: Graph, noted: Noted) -> bool:
        """Whether modules of the graph were called in a compiled function only, where at all."""
        if not self._noting or not (graph.fused or (len(self._ids) and not noted.called)):
            return False
        taken = noted.held[graph.sources] >= 0
        seen = np.zeros(graph.nodes, bool)
        updates = [number for scope, number in self._scopes.items() if scope.path == OPTIMIZER]
        by_module = (noted.made >= 0) & ~np.isin(noted.made, updates)
        seen[graph.sources[taken & by_module[graph.targets]]] = True
        return bool((~seen[graph.sources[taken]]).any())


def _given(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    """Parameters and gradients of ``update(model, gradients)``, ``apply_gradients(the other way)``.

    Subclasses of the user may take more arguments, or call them otherwise.
    """
    first, second = [*arguments, None, None][:2]
    if name == "apply_gradients":
        return keywords.get("parameters", second), keywords.get("gradients", first)
    return keywords.get("model", first), keywords.get("gradients", second)


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    leaves: Any = tree_flatten(tree)
    return [(path, value) for path, value in leaves if isinstance(value, mx.array)]


def _module_of(path: str, known: Mapping[str, Scope]) -> str:
    """The path of the innermost module around a parameter: lists and dicts are none."""
    while path:
        path = path.rpartition(".")[0]
        if path in known:
            break
    return path


def _looked_up(
    wanted: np.ndarray[Any, np.dtype[np.uint64]],
    ids: np.ndarray[Any, np.dtype[np.uint64]],
    values: np.ndarray[Any, np.dtype[np.int32]],
    missing: int = -1,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The value of each id. int32 [wanted]"""
    if not len(ids):
        return np.full(len(wanted), missing, np.int32)
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids[order], wanted), len(order) - 1)
    return np.where(ids[order][place] == wanted, values[order][place], missing).astype(np.int32)


def _kinds(base: type, method: str) -> list[type]:
    """The classes below one, and itself, that have a method of their own."""
    found, waiting = dict[type, None](), [base]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found[kind] = None
            waiting += kind.__subclasses__()
    return [kind for kind in found if method in kind.__dict__]
