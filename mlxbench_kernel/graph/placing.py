"""A module for every node, concluded from those that were noted while modules were called."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.adjoint import Backward
from mlxbench_kernel.graph.model import Graph, Indices, Phase, Scope
from mlxbench_kernel.graph.phases import depending, phases
from mlxbench_kernel.graph.unwatched import gradients, updates

OPTIMIZER = "optimizer"
NO_GRADIENT = -2
_NEAR = 6  # modules around a node that are looked at


@dataclass(frozen=True)
class Noted:
    """What is known of the nodes of a graph; numbers of scopes, -1 where nothing is known.

    Attributes
    ----------
    made : int32 [nodes]
        The module that was being called, or the optimizer that updated.
    held : int32 [nodes]
        The module that holds it as a parameter or a buffer.
    gradient : int32 [nodes]
        Of what an optimizer was given, the module of the parameter; `NO_GRADIENT` for the rest.
    called
        Whether modules were watched while the graph was made.
    """

    made: Indices
    held: Indices
    gradient: Indices
    called: bool


def placed(
    graph: Graph, noted: Noted, scopes: Mapping[Scope, int], modules: Mapping[str, Scope]
) -> Graph:
    """The graph with scopes and phases.

    Parameters
    ----------
    noted
        What is known.
    scopes
        The numbers that `noted` has for scopes.
    modules
        All modules by their paths.
    """
    scopes = dict(scopes)
    if not noted.called:
        noted = _unwatched(graph, noted, scopes)
    updates = [number for scope, number in scopes.items() if scope.path == OPTIMIZER]
    updated = np.isin(noted.made, updates)
    module = (noted.made >= 0) & ~updated
    phase = phases(graph, module, updated, noted.gradient != NO_GRADIENT, noted.held >= 0)
    places = _Places(scopes, {**modules, **{scope.path: scope for scope in scopes}})
    found: list[int] = noted.made.tolist()
    _place_forward(graph, noted, phase, found, places)
    _place_backward(graph, noted, phase, module, found, places)
    _place_inputs(graph, noted.held, found, places)
    scope = np.array(found, np.int32)
    phase[np.isin(scope, updates)] = Phase.OPTIMIZER  # its state too
    return graph.with_(scope=scope, phase=phase, scopes=tuple(places.numbers))


def _unwatched(graph: Graph, noted: Noted, scopes: dict[Scope, int]) -> Noted:
    updated = updates(graph, noted.held)
    if not updated.any():
        return noted
    number = scopes.setdefault(Scope(OPTIMIZER), len(scopes))
    return replace(
        noted,
        made=np.where(updated, number, noted.made).astype(np.int32),
        gradient=gradients(graph, noted.held, updated, NO_GRADIENT),
    )


class _Places:
    """The scopes by number, and the innermost one around several."""

    def __init__(self, scopes: Mapping[Scope, int], kinds: Mapping[str, Scope]) -> None:
        self.numbers = dict(scopes)
        self._paths = {number: scope.path for scope, number in scopes.items()}
        self._kinds = kinds
        self._joint: dict[tuple[int, int], int] = {}

    def depth(self, number: int) -> int:
        """How many modules are around it; 0 for the root."""
        path = self._paths[number]
        return path.count(".") + 1 if path else 0

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
        scope = self._kinds[path] if path else Scope("")
        number = self.numbers.setdefault(scope, len(self.numbers))
        self._paths[number] = scope.path
        return number

    def around_all(self, scopes: Iterable[int]) -> int:
        """The innermost scope that holds all that are known; -1 for none."""
        known = {scope for scope in scopes if scope >= 0}
        return functools.reduce(self.around, known) if known else -1


def _place_forward(
    graph: Graph,
    noted: Noted,
    phase: NDArray[np.uint8],
    found: list[int],
    places: _Places,
) -> None:
    """What was not noted belongs to the module whose parameters it takes.

    The rest is placed between such operations. What was noted gives no such hint: while that was
    watched, these were made outside of it.
    """
    owner: list[int] = noted.held.tolist()  # of parameters, and of what is made of one alone
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    loose = []
    for node in np.flatnonzero((phase == Phase.FORWARD) & (graph.primitive != 0)).tolist():
        taken = sources[start[node] : start[node + 1]]
        if len(taken) == 1 and owner[node] < 0:
            owner[node] = owner[taken[0]]
        if found[node] >= 0:
            continue
        owners = [owner[source] for source in taken if owner[source] >= 0]
        if owners:
            found[node] = places.around_all(owners)
        elif owner[node] >= 0:  # a parameter that is not computed yet
            found[node] = owner[node]
        else:
            loose.append(node)
    _place_between(graph, loose, found, noted.made, places)


def _place_between(
    graph: Graph, loose: list[int], found: list[int], made: Indices, places: _Places
) -> None:
    """What stands between two operations of a module belongs to it.

    Of the modules of the nearest operations before and after, the innermost that holds one of
    each: an attention's softmax stands between its projections, an activation between two layers.
    What no module follows is of the one around the last: that has called it, and may go on.
    """
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    waiting, watched = set(loose), (made >= 0).tolist()
    users: dict[int, list[int]] = {node: [] for node in loose}
    for node, first in enumerate(start[:-1]):
        for source in sources[first : start[node + 1]]:
            if source in waiting:
                users[source].append(node)

    def near(nodes: list[int], known: dict[int, list[int]]) -> list[int]:
        around: dict[int, None] = {}
        for node in nodes:
            if node in waiting:
                around.update(dict.fromkeys(known.get(node, ())))
            elif found[node] >= 0:
                around[0 if watched[node] else found[node]] = None
        return list(around)[:_NEAR]

    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for node in loose:
        before[node] = near(sources[start[node] : start[node + 1]], before)
    for node in reversed(loose):
        after[node] = near(users[node], after)
    for node in loose:
        pairs = [places.around(one, other) for one in before[node] for other in after[node]]
        if not after[node]:
            pairs = [places.caller(one) for one in before[node] if one > 0]
        found[node] = max(pairs, key=places.depth, default=0)


def _place_backward(
    graph: Graph,
    noted: Noted,
    phase: NDArray[np.uint8],
    module: NDArray[np.bool_],
    found: list[int],
    places: _Places,
) -> None:
    """Backward operations stand where the forward ones do that they were made for.

    The cotangents of an array that several take are added up in the module around these.
    """
    computed = graph.primitive != 0
    loose = computed & (phase == Phase.BACKWARD) & ~module
    if loose.any():
        forward = computed & ((phase == Phase.FORWARD) | module | depending(graph))
        backward = Backward(graph, forward, loose & ~forward, found, noted.held >= 0)
        around: dict[int, int] = {}
        for node in np.flatnonzero(loose).tolist():
            place = backward.place[node]
            found[node] = found[place] if place >= 0 else 0
            if node in backward.sums:
                array = backward.sums[node]
                if array not in around:
                    around[array] = places.around_all(found[user] for user in backward.users(array))
                found[node] = around[array]
            elif node in backward.fused:
                found[node] = places.around_all(found[each] for each in backward.fused[node])
    of_parameter = np.flatnonzero((noted.gradient >= 0) & ~module)
    for node, scope in zip(
        of_parameter.tolist(), noted.gradient[of_parameter].tolist(), strict=True
    ):
        found[node] = scope
    _place_before_gradients(graph, of_parameter.tolist(), loose, found)


def _place_before_gradients(
    graph: Graph, gradients: list[int], loose: NDArray[np.bool_], found: list[int]
) -> None:
    """What a gradient alone is made of, one from the other, belongs to the same parameter.

    A bias is added to what a residual connection may be added to as well: the sum of their common
    cotangent alone does not tell which bias it is the gradient of. And what the last layer of a
    checkpoint gives is not computed again, so that its operation is not there.
    """
    users = np.bincount(graph.sources, minlength=graph.nodes).tolist()
    products = [name in ("Matmul", "Convolution") for name in graph.primitives]
    for node in gradients:
        waiting = [node]
        for inner in waiting:
            taken = graph.sources[graph.input_start[inner] : graph.input_start[inner + 1]].tolist()
            product = products[graph.primitive[inner]]
            if len(taken) == 1 or product:
                found[inner] = found[node]
                waiting += [
                    source
                    for source in taken
                    if users[source] == 1
                    and loose[source]
                    and (not product or graph.primitive_name(source) == "Transpose")
                ]


def _place_inputs(graph: Graph, held: Indices, found: list[int], places: _Places) -> None:
    """Parameters stand in their module; other inputs where they are used."""
    taken: dict[int, set[int]] = {}
    of_input = graph.primitive[graph.sources] == 0
    sources, targets = graph.sources[of_input].tolist(), graph.targets[of_input].tolist()
    for source, target in zip(sources, targets, strict=True):
        taken.setdefault(source, set()).add(found[target])
    for node in np.flatnonzero(graph.primitive == 0).tolist():
        own = int(held[node])
        found[node] = own if own >= 0 else max(places.around_all(taken.get(node, ())), 0)
    for node in [node for node, scope in enumerate(found) if scope < 0]:
        found[node] = 0
