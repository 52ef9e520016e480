"""Which module a node belongs to: noted while modules are called, and concluded afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.graph.model import Graph, Phase, Scope
from mlxbench_kernel.graph.trees import arrays_in, named_arrays

OPTIMIZER = "optimizer"


def module_paths(modules: Mapping[str, Module]) -> dict[int, Scope]:
    """The scope of each module, by its id.

    Parameters
    ----------
    modules
        The user's modules by the names of their variables. A part of another one has the path
        that it has there; where there are several, paths begin with the variable's name.
    """
    inner = {
        id(part) for module in modules.values() for path, part in module.named_modules() if path
    }
    outer = {name: module for name, module in modules.items() if id(module) not in inner}
    found: dict[int, Scope] = {}
    for name, module in outer.items():
        for path, part in module.named_modules():
            whole = ".".join(each for each in (name if len(outer) > 1 else "", path) if each)
            found.setdefault(id(part), Scope(whole, type(part).__name__))
    return found


class Scoping:
    """Notes which nodes are made while a module is called, or an optimizer updates.

    Parameters
    ----------
    paths
        From `module_paths`.
    """

    def __init__(self, paths: Mapping[int, Scope]) -> None:
        self._paths = paths
        self._scopes: dict[Scope, int] = {Scope(""): 0}
        module = native.load()
        self._marker = None if module is None else module.Marker()
        self._by_path = {scope.path: scope for scope in paths.values()}
        self.gradients: list[tuple[str, mx.array]] = []
        self._ids = np.zeros(0, np.uint64)
        self._marks = np.zeros(0, np.int32)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Modules and optimizers that are called in the block are noted."""
        if self._marker is None:
            yield
            return
        changed: list[tuple[type, str, Any]] = []

        def wrap(kind: type, name: str, wrapped: Callable[..., Any]) -> None:
            changed.append((kind, name, kind.__dict__[name]))
            setattr(kind, name, wrapped)

        try:
            for kind in _kinds(Module, "__call__"):
                wrap(kind, "__call__", self._called(kind.__dict__["__call__"]))
            for kind in _kinds(optim.Optimizer, "update"):
                wrap(kind, "update", self._updated(kind.__dict__["update"]))
            yield
        finally:
            for kind, name, original in reversed(changed):
                setattr(kind, name, original)
            self._ids, self._marks = self._marker.take()

    def _number(self, scope: Scope) -> int:
        return self._scopes.setdefault(scope, len(self._scopes))

    def _called(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(module: Module, *arguments: Any, **keywords: Any) -> Any:
            scope = self._paths.get(id(module))
            if scope is None or self._marker is None:
                return original(module, *arguments, **keywords)
            inputs, since = arrays_in([arguments, keywords]), self._marker.count()
            result = original(module, *arguments, **keywords)
            self._marker.mark(arrays_in(result), inputs, self._number(scope), since)
            return result

        return call

    def _updated(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def update(optimizer: optim.Optimizer, model: Module, gradients: Any) -> Any:
            before = arrays_in([optimizer, model, gradients])
            for path, array in named_arrays("", gradients):
                self.gradients.append((path, array))
                module = self._by_path.get(path.rpartition(".")[0])
                if module is not None and self._marker is not None:
                    self._marker.mark_one(array, self._number(module))
            since = 0 if self._marker is None else self._marker.count()
            result = original(optimizer, model, gradients)
            if self._marker is not None:
                scope = Scope(OPTIMIZER, type(optimizer).__name__)
                self._marker.mark(arrays_in([optimizer, model]), before, self._number(scope), since)
            return result

        return update

    def apply(self, graph: Graph) -> Graph:
        """The graph with scopes and phases."""
        known = self._known(graph)
        parameters = _parameter_scopes(graph, self._paths, self._number)
        if len(self._scopes) == 1:
            return graph
        phase = _phases(graph, known, self._scopes)
        kinds = {scope.path: scope for scope in [*self._paths.values(), *self._scopes]}
        places = _Places(self._scopes, kinds)
        scope = _conclude(graph, known, parameters, phase, places)
        for part, number in self._scopes.items():  # its state belongs to it, computed or not
            if part.path == OPTIMIZER:
                phase[scope == number] = Phase.OPTIMIZER
        return graph.with_(scope=scope, phase=phase, scopes=tuple(places.numbers))

    def _known(self, graph: Graph) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The scope that was noted for each node, -1 without. int32 [nodes]"""
        known = np.full(graph.nodes, -1, np.int32)
        if len(self._ids):
            order = np.argsort(self._ids)
            place = np.minimum(np.searchsorted(self._ids[order], graph.id), len(order) - 1)
            found = self._ids[order][place] == graph.id
            known[graph.node[found]] = self._marks[order][place][found]
        return known


def _kinds(base: type, method: str) -> list[type]:
    """The classes below one, and itself, that have a method of their own."""
    found, waiting = dict[type, None](), [base]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found[kind] = None
            waiting += kind.__subclasses__()
    return [kind for kind in found if method in kind.__dict__]


def _parameter_scopes(
    graph: Graph, paths: Mapping[int, Scope], number: Callable[[Scope], int]
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """For inputs that are parameters, the scope of their module; -1 for others. int32 [nodes]"""
    by_path = {scope.path: scope for scope in paths.values()}
    scopes = np.full(graph.nodes, -1, np.int32)
    for array, name in graph.names.items():
        node = int(graph.node[array])
        scope = by_path.get(name.rpartition(".")[0])
        if scope is not None and graph.is_input(node):
            scopes[node] = number(scope)
    return scopes


def _phases(
    graph: Graph,
    known: np.ndarray[Any, np.dtype[np.int32]],
    scopes: Mapping[Scope, int],
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Forward, backward or optimizer. uint8 [nodes]

    Backward is what the loss does not need, but the gradients do: the loss is the scalar output
    that needs modules, and of several the one that needs least.
    """
    phase = np.full(graph.nodes, Phase.FORWARD, np.uint8)
    updates = [number for scope, number in scopes.items() if scope.path == OPTIMIZER]
    updated = np.isin(known, updates) & (known >= 0)
    losses = [
        int(array)
        for array in graph.outputs
        if graph.shape(array) == () and graph.dtype_name(array).startswith(("float", "bfloat"))
    ]
    needed = [ancestors(graph, [graph.node[array]]) for array in dict.fromkeys(losses)]
    needed = [each for each in needed if (known[each] > 0).any() and not updated[each].any()]
    if needed:
        forward = min(needed, key=lambda each: int(each.sum()))
        computed = graph.primitive != 0
        others = [array for array in graph.outputs if not forward[graph.node[array]]]
        wide = [array for array in others if graph.shape(array) != ()] or others
        backward = ancestors(graph, [graph.node[array] for array in wide])
        phase[backward & ~forward & computed] = Phase.BACKWARD
    phase[updated] = Phase.OPTIMIZER
    return phase


def ancestors(graph: Graph, nodes: list[Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """What some nodes need, themselves included. bool [nodes]"""
    found = np.zeros(graph.nodes, bool)
    found[nodes] = True
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    waiting = [int(node) for node in nodes]
    while waiting:
        node = waiting.pop()
        for source in sources[start[node] : start[node + 1]]:
            if not found[source]:
                found[source] = True
                waiting.append(source)
    return found


class _Places:
    """The scopes by number, and the innermost one around several."""

    def __init__(self, scopes: Mapping[Scope, int], kinds: Mapping[str, Scope]) -> None:
        self.numbers = dict(scopes)
        self._paths = {number: scope.path for scope, number in scopes.items()}
        self._kinds = kinds
        self._joint: dict[tuple[int, int], int] = {}

    def depth(self, number: int) -> int:
        """How many modules are around it; 0 for the root, -1 for what is not known."""
        path = self._paths.get(number)
        return -1 if path is None else path.count(".") + 1 if path else 0

    def around(self, one: int, other: int) -> int:
        """The innermost scope that holds both."""
        if one == other:
            return one
        if (one, other) not in self._joint:
            parts = []
            for left, right in zip(
                self._paths[one].split("."), self._paths[other].split("."), strict=False
            ):
                if left != right:
                    break
                parts.append(left)
            self._joint[one, other] = self._number(parts)
        return self._joint[one, other]

    def caller(self, number: int) -> int:
        """The module around one."""
        return self._number(self._paths[number].split(".")[:-1])

    def _number(self, parts: list[str]) -> int:
        # "layers" is a list and no module: what is around it holds the same.
        while parts and ".".join(parts) not in self._kinds:
            parts.pop()
        path = ".".join(parts)
        scope = self._kinds.get(path, Scope("")) if path else Scope("")
        number = self.numbers.setdefault(scope, len(self.numbers))
        self._paths[number] = scope.path
        return number


def _conclude(
    graph: Graph,
    known: np.ndarray[Any, np.dtype[np.int32]],
    parameters: np.ndarray[Any, np.dtype[np.int32]],
    phase: np.ndarray[Any, np.dtype[np.uint8]],
    places: _Places,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A scope for every node. int32 [nodes]

    Forward, what was not noted belongs to the module whose parameters it takes, else to none if
    it takes what was noted, else to the innermost one around all that it takes. Backward it is
    the other way round: gradients flow from what uses them, down to the parameters.
    """
    found: list[int] = np.where(known >= 0, known, parameters).tolist()
    owner: list[int] = parameters.tolist()  # of parameters, and of views of them
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    phases, noted = phase.tolist(), (known >= 0).tolist()
    users: list[list[int]] = [[] for _ in range(graph.nodes)]
    for node in range(graph.nodes):
        taken = sources[start[node] : start[node + 1]]
        for source in taken:
            users[source].append(node)
        owners = [owner[source] for source in taken if owner[source] >= 0]
        if owners and len(taken) == 1:
            owner[node] = owners[0]
        if found[node] < 0 and taken and phases[node] == Phase.FORWARD:
            # Made of what a module gave while that was watched, it was made outside of it.
            outside = any(noted[source] for source in taken)
            within = 0 if outside else _joint([found[s] for s in taken], places)
            found[node] = owners[0] if owners else within
    for node in range(graph.nodes - 1, -1, -1):
        if phases[node] != Phase.BACKWARD or (found[node] >= 0 and noted[node]):
            continue
        taken = sources[start[node] : start[node + 1]]
        owners = [owner[source] for source in taken if owner[source] >= 0]
        after = [found[u] for u in users[node] if phases[u] == Phase.BACKWARD and found[u] >= 0]
        before = [found[s] for s in taken if phases[s] == Phase.FORWARD and found[s] > 0]
        derived = bool(before) and all(phases[s] == Phase.FORWARD for s in taken)
        use, origin = _joint(after, places), _joint(before, places)
        inner = derived or places.depth(origin) > places.depth(use)
        found[node] = owners[0] if owners else origin if inner else use
    for node in range(graph.nodes):  # what many use belongs to where it comes from
        if phases[node] == Phase.BACKWARD and not noted[node]:
            taken = [found[s] for s in sources[start[node] : start[node + 1]]]
            origin = _joint(taken, places)
            if places.depth(origin) > places.depth(found[node]):
                found[node] = origin
    _place_sums(graph, found, phases, noted, users, places)
    for node in range(graph.nodes):  # inputs stand where they are used
        if found[node] < 0:
            found[node] = max(_joint([found[user] for user in users[node]], places), 0)
    return np.array(found, np.int32)


def _place_sums(
    graph: Graph,
    found: list[int],
    phases: list[int],
    noted: list[bool],
    users: list[list[int]],
    places: _Places,
) -> None:
    """Gradients of an array that several use are added up where that array was made.

    Taken from several modules, such sums stand outside of all of them so far. The module that made
    the array is the one around what the sum flows on to, or else around where it comes from.
    """
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    apart = []
    for node in range(graph.nodes):
        if phases[node] == Phase.BACKWARD and not noted[node]:
            taken = [found[source] for source in sources[start[node] : start[node + 1]]]
            if len(taken) > 1 and any(places.depth(s) > places.depth(found[node]) for s in taken):
                apart.append(node)
    sums = set(apart)
    for node in apart:
        after = [found[u] for u in users[node] if u not in sums and phases[u] == Phase.BACKWARD]
        before = [found[s] for s in sources[start[node] : start[node + 1]] if s not in sums]
        for scopes in (after, before):
            inner = max(scopes, key=places.depth, default=-1)
            candidates = (places.caller(inner), inner) if inner > 0 else ()
            deeper = [s for s in candidates if places.depth(s) > places.depth(found[node])]
            if deeper:
                found[node] = deeper[0]
                break


def _joint(scopes: list[int], places: _Places) -> int:
    known = [scope for scope in scopes if scope >= 0]
    return functools.reduce(places.around, known) if known else -1
