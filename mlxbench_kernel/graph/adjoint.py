"""Which forward operation each backward one was made for.

MLX walks from the loss back along the forward operations and calls the ``vjp`` of each
(``vjp`` in mlx/transforms.cpp). What such a call makes is not marked, but it can only take the
cotangent that has come so far, the operation's own inputs and outputs, and constants. So each
cotangent is followed back, one forward operation at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from math import inf

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.tape import Tape

OUTSIDE = -2  # made of gradients by the user, after all of them
UNKNOWN = -1

# What a vjp of one primitive alone is made of, by what it is made for (mlx/primitives.cpp).
_RESHAPING = ("Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims")
_MADE_FOR: dict[str, tuple[str, ...]] = {
    "Reshape": _RESHAPING,
    "Flatten": _RESHAPING,
    "Unflatten": _RESHAPING,
    "Transpose": ("Transpose",),
    "AsType": ("AsType",),
    "Slice": ("Concatenate", "Pad"),
    "Split": ("Concatenate",),
    "Negative": ("Subtract", "Negative"),
}
# The same, where what is made for it has other axes of length 1 than the forward operation has.
_LOOSELY_MADE_FOR: dict[str, tuple[str, ...]] = {
    "Broadcast": ("Sum", "Squeeze"),
    "ExpandDims": ("Squeeze", "Sum", "Reshape", "Slice"),
    "Squeeze": ("ExpandDims", "Broadcast", "Reshape"),
    "Sum": ("Broadcast",),
}
# The vjp of what only moves values or multiplies matrices has none of these.
_ARITHMETIC = frozenset(("Multiply", "Divide", "Subtract"))
_MOVING = ("Transpose", "Broadcast", "Slice", "Concatenate", "Split", "Gather", "GatherAxis")
_LINEAR = frozenset((*_RESHAPING, *_MOVING, "Sum", "Matmul", "AddMM", "Convolution"))
_STEPS, _FEW_STEPS = 48, 16  # forward operations that are looked at from where a cotangent is


class Backward:
    """The places of backward operations.

    Parameters
    ----------
    graph
        Of which gradients are a part.
    forward : bool [nodes]
        The operations that gradients were taken of, those that a checkpoint made again as well.
    backward : bool [nodes]
        The operations to find a place for.
    scope : list of int
        The scope of each forward operation.
    held : bool [nodes]
        Parameters: what does not depend on them passes no gradients on.

    Attributes
    ----------
    place : list of int
        For each backward operation the forward one whose vjp made it; `UNKNOWN`, or `OUTSIDE`.
    sums : dict of int to int
        For what adds up the cotangents of an array that several take, the node of that array.
    fused : dict of int to list of int
        For what ``mx.compile`` fused of the vjp of several operations, these, and maybe more.
    """

    def __init__(
        self,
        graph: Graph,
        forward: NDArray[np.bool_],
        backward: NDArray[np.bool_],
        scope: list[int],
        held: NDArray[np.bool_],
    ) -> None:
        self._tape = Tape(graph, forward, held)
        self._name, self._size, self._shape = self._tape.name, self._tape.size, self._tape.shape
        self._rank = self._tape.rank
        self._backward: list[bool] = backward.tolist()
        self._scope = scope
        self.place = [UNKNOWN] * graph.nodes
        self.sums: dict[int, int] = {}
        self.fused: dict[int, list[int]] = {}
        self._of_values: dict[int, list[int]] = {}  # made of forward values only: of which
        self._spent: set[int] = set()  # cotangents that are all that a vjp makes
        self._open: set[int] = set()  # where those that take them belong, is a better guess
        nodes = np.flatnonzero(backward).tolist()
        for node in nodes:
            self.place[node] = self._find(node)
        self._where_taken(nodes)

    def users(self, node: int) -> list[int]:
        """The forward operations that take what a node gives."""
        return self._tape.users(node)

    def _find(self, node: int) -> int:
        values: list[int] = []
        cotangents: list[int] = []
        made: list[int] = []  # of forward values only
        for source in dict.fromkeys(self._tape.taken(node)):
            if self._backward[source]:
                (made if source in self._of_values else cotangents).append(source)
            elif self._tape.forward[source] or self._tape.count(source):
                values.append(source)
        all_values = [*values, *(value for each in made for value in self._of_values[each])]
        if not (cotangents or values) and len(made) == 1 and self._name[node] == "Sum":
            found = self._made_for(node, self.place[made[0]], made[0])  # of a constant cotangent
            if node not in self._open:
                return found
        if not cotangents:
            found = self._last_of(node, all_values) if all_values else UNKNOWN
            if found < 0 and all_values and all(map(self._tape.is_constant, all_values)):
                users = [user for value in all_values for user in self.users(value)]
                found, all_values = max(users, key=self._rank.__getitem__), []
            if found >= 0 or not made:
                self._of_values[node] = all_values[:4]
                if all_values:
                    self._open.add(node)
                return found
            # No one operation takes all of it: the last of it is a cotangent, made of constants.
            first = max(made, key=self._when)
            made.remove(first)
            cotangents = [first]
            all_values = [*values, *(value for each in made for value in self._of_values[each])]
        places = [self.place[each] for each in cotangents if self.place[each] >= 0]
        if not places:
            found = self._last_of(node, all_values) if all_values else UNKNOWN
            if found >= 0:
                return found
            outside = any(self.place[each] == OUTSIDE for each in cotangents)
            return OUTSIDE if outside else UNKNOWN
        at = min(places, key=self._rank.__getitem__)
        if all_values:
            return self._taking(node, at, all_values, values)
        if len(cotangents) > 1:
            outside = any(self.place[each] == OUTSIDE for each in cotangents)
            if outside and self._name[node] == "Add":
                return OUTSIDE  # a norm of all gradients goes on
            return self._joined(node, at, places)
        return self._made_for(node, at, cotangents[0])

    def _when(self, node: int) -> float:
        """The rank of its place; what has none stands before the first one."""
        place = self.place[node]
        return self._rank[place] if place >= 0 else inf

    def _taking(self, node: int, at: int, all_values: list[int], values: list[int]) -> int:
        # Equal constants of different operations are one after mx.compile.
        telling = [value for value in all_values if not self._tape.is_constant(value)]
        for some in (all_values, values, telling):
            found = self._near(node, at, some) if some else UNKNOWN
            if found >= 0:
                return found
        telling = telling or all_values
        found = self._last_of(node, telling, at)
        if found < 0:  # the last one was not right
            found = self._last_of(node, telling)
        if found < 0 and self._name[node].startswith("Compiled"):
            self.fused[node] = [user for value in telling for user in self.users(value)]
            found = min(self.fused[node], key=self._rank.__getitem__, default=UNKNOWN)
        return found if found >= 0 else at

    def _near(self, made: int, at: int, values: list[int]) -> int:
        """The nearest operation on the way back that takes or gives all values."""
        arithmetic = self._name[made] in _ARITHMETIC
        for node in self._tape.back_from(at, _STEPS):
            if not (arithmetic and self._name[node] in _LINEAR) and self._tape.touches(
                node, values
            ):
                return node
        return UNKNOWN

    def _last_of(self, made: int, values: list[int], at: int | None = None) -> int:
        """The last operation, up to one, that takes or gives all values."""
        rank, arithmetic = self._rank, self._name[made] in _ARITHMETIC
        most = rank[-1] if at is None else rank[at]
        fewest = min(values, key=self._tape.count)
        others = [value for value in values if value != fewest]
        around = self.users(fewest)
        if self._tape.forward[fewest]:
            around = [fewest, *around]
        if self._tape.in_order:  # in the order of their ranks
            around = around[: bisect_right(around, most, key=rank.__getitem__)]
            candidates: Iterable[int] = reversed(around)
        else:
            candidates = sorted(around, key=rank.__getitem__, reverse=True)
        for each in candidates:
            fits = rank[each] <= most and not (arithmetic and self._name[each] in _LINEAR)
            if fits and self._tape.touches(each, others):
                return each
        return UNKNOWN

    def _joined(self, node: int, at: int, places: list[int]) -> int:
        """A place for what takes several cotangents."""
        if self._name[node] == "Add":
            size = self._size[node]
            several = [
                source
                for source in self._tape.taken(at)
                if self._size[source] == size and self._tape.count(source) > 1
            ]
            if several:
                self.sums[node] = max(several)
                return at
        if self._name[node] == "Concatenate":
            for each in self._tape.back_from(at, _FEW_STEPS):
                taken = self._tape.taken(each)
                if self._name[each] == "Split" and self._shape[taken[0]] == self._shape[node]:
                    return each
        return at if len({self._scope[place] for place in places}) == 1 else OUTSIDE

    def _made_for(self, node: int, at: int, cotangent: int) -> int:
        """The operation whose vjp takes nothing but the cotangent."""
        name = self._name[node]
        exact = _MADE_FOR.get(name)
        names = exact or _LOOSELY_MADE_FOR.get(name)
        if names is None:
            return at
        sizes: list[int] | list[bytes] = self._shape if exact else self._size
        size, before = sizes[node], sizes[cotangent]
        for each in self._tape.back_from(at, _FEW_STEPS):
            spent = each == at and cotangent in self._spent
            fits = not spent and self._name[each] in names and sizes[each] == before
            if fits and any(sizes[source] == size for source in self._tape.taken(each)):
                if exact:
                    self._spent.add(node)
                return each
        self._open.add(node)
        return at

    def _where_taken(self, nodes: list[int]) -> None:
        """Constants and views that a vjp makes belong to what takes them there."""
        after: dict[int, int] = {}
        for node in reversed(nodes):
            place = self.place[node]
            if place == UNKNOWN or node in self._open:
                best = after.get(node, UNKNOWN)
                if best >= 0 and self._may_be(node, best):
                    place = self.place[node] = best
            if place >= 0:
                for source in self._tape.taken(node):
                    if self._backward[source]:
                        last = after.get(source, place)
                        after[source] = max(last, place, key=self._rank.__getitem__)

    def _may_be(self, node: int, place: int) -> bool:
        now, values = self.place[node], self._of_values.get(node)
        if now == UNKNOWN or values is None:
            return now == UNKNOWN or self._rank[place] <= self._rank[now]
        return any(self._tape.touches(place, [value]) for value in values)
