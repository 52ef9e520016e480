"""Goes through the variables of a process, and says which arrays are where.

It runs nobody's code and ends after so many objects or so much time. Every container is gone into
once; where it is found again there is a link to where it was found first.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Collection, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from mlxbench_kernel.memory import contents
from mlxbench_kernel.memory.holdings import NONE, UNKNOWN

ITEMS = 100_000  # of one container
_LOOKS = 500  # objects between two looks at the clock

PARAMETERS, OPTIMIZER, CACHES, GRADIENTS, VARIABLES, GRAPH, SNAPSHOTS, HISTORY = KINDS = (
    "parameters",
    "optimizer",
    "kv cache",
    "gradients",
    "variables", "graph", "snapshots", "history",
)  # fmt: skip
RESULTS, ERROR = "IPython's results", "last error"  # what stands for variables there
_ERRORS = ("last_exc", "last_value")
_FIXED = frozenset({SNAPSHOTS, HISTORY})  # whatever it is, it is there as one of these

_SKIP, _ARRAY, _NUMPY, _BYTES, _OBJECT = range(5)


class _Class(NamedTuple):
    """What is known of a class."""

    name: str
    action: int
    opener: contents.Opener | None = None
    kind: str | None = None  # what its instances hold counts as


class Walk:
    """What was found; see the module.

    Parameters
    ----------
    seconds, objects
        Where the walk ends.

    Attributes
    ----------
    rows : list of (key, parent, kind, type)
        Of each node (an object that was gone into, an array, a link): under which key it is held,
        by which node, or -1; what it counts as; the name of its class.
    arrays, places : list
        MLX arrays, and the nodes where they are; an array in two places is there twice.
    links : list of (node, node)
        Where a container was found again, and where it was found first.
    host : list of (node, bytes)
        Memory of NumPy arrays and bytes, each counted once.
    stopped : list of str
        Where something was left out: the walk ended there, or a container is too long.
    """

    def __init__(self, seconds: float, objects: int) -> None:
        import mlx.core as mx
        import mlx.optimizers as optim
        import numpy as np
        from mlx.nn.layers.base import Module

        self.rows: list[tuple[Any, int, str, str]] = []
        self.arrays: list[Any] = []
        self.places: list[int] = []
        self.links: list[tuple[int, int]] = []
        self.host: list[tuple[int, int]] = []
        self.stopped: list[str] = []
        self._over = False
        self._bases = mx.array, np.ndarray
        self._owners = (Module, PARAMETERS), (optim.Optimizer, OPTIMIZER)
        self._classes: dict[type, _Class] = {}
        self._skipped = set(contents.PLAIN)
        self._seen: dict[int, int] = {}
        self._objects: list[tuple[int, Any]] = []  # keeps ids from being used again meanwhile
        self._host_seen: set[int] = set()
        self._until = time.perf_counter() + seconds
        self._left = objects
        self._beside = threading.current_thread() is not threading.main_thread()

    def variables(
        self, namespace: Mapping[str, Any], hidden: Collection[str] = (), *, holders: bool = True
    ) -> None:
        """Go through variables: models first, IPython's own last; `HOLDERS` come between."""
        from mlxbench_kernel.memory.holders import HOLDERS

        self._seen[id(namespace)] = NONE
        ours: list[tuple[str, Any]] = []
        theirs: list[tuple[str, Any]] = []
        for name, value in list(namespace.items()):
            if type(value) in self._skipped:
                continue
            own = name in hidden or contents.is_own_name(name)
            (theirs if own else ours).append((name, value))
        ours.sort(key=lambda item: (self._rank(item[1]), item[0].startswith("_")))
        for name, value in ours:
            is_tree = type(value) in (dict, list, tuple) and "grad" in name.lower()
            self._top(name, value, GRADIENTS if is_tree else VARIABLES)
        for name, give in list(HOLDERS.items()) if holders else ():
            self._top(name, _given(give), SNAPSHOTS)
        self._top(RESULTS, dict(sorted(theirs, key=itemgetter(0))), HISTORY)
        # What a cell that failed had made lives on in its frames.
        self._top(ERROR, [vars(sys)[name] for name in _ERRORS if name in vars(sys)], HISTORY)

    def roots(self) -> list[int]:
        """Of each node that of the variable which it was first found in."""
        roots: list[int] = []
        for node, (_, parent, _, _) in enumerate(self.rows):
            roots.append(node if parent < 0 else roots[parent])
        return roots

    def shared(self, roots: list[int]) -> list[int]:
        """Of each node the root of another variable that leads to it as well, or NONE, UNKNOWN.

        What is UNKNOWN has more references than were found. To be called once, after the walk:
        it lets go of the objects.
        """
        second = [NONE] * len(roots)
        waiting = [(first, roots[again]) for again, first in self.links]
        waiting += [(node, UNKNOWN) for node in self._held_elsewhere()]
        self._objects.clear()
        if waiting:
            inside: list[list[int]] = [[] for _ in roots]
            for node, (_, parent, _, _) in enumerate(self.rows):
                if parent >= 0:
                    inside[parent].append(node)
            for again, first in self.links:
                inside[self.rows[again][1]].append(first)
            while waiting:
                node, root = waiting.pop()
                if root != roots[node] and second[node] == NONE:
                    second[node] = root
                    waiting += [(each, root) for each in inside[node]]
        return second

    def _held_elsewhere(self) -> list[int]:
        known = dict.fromkeys([node for node, _ in self._objects], 1)
        for _, first in self.links:
            known[first] += 1
        [ours] = _references([(NONE, object())])
        counts = zip(self._objects, _references(self._objects), strict=True)
        return [
            node
            for (node, _), count in counts
            if count > known[node] + ours and self.rows[node][2] not in _FIXED
        ]

    def _rank(self, value: Any) -> int:
        kind = self._class(type(value)).kind
        return KINDS.index(VARIABLES if kind is None else kind)

    def _top(self, name: str, value: Any, kind: str) -> None:
        if self._over:
            return
        waiting: list[tuple[Any, Any, int, str]] = [(name, value, NONE, kind)]
        del value  # counted references are those of others
        rows, seen, classes = self.rows, self._seen, self._classes
        while waiting:
            key, part, parent, kind = waiting.pop()
            known = classes.get(type(part)) or self._class(type(part))
            self._left -= 1
            if self._left % _LOOKS == 0 and self._is_over():
                self._over = True
                self.stopped.append(f"the walk ended at {self._where(key, parent)}")
                return
            if known.action == _ARRAY:
                self.places.append(len(rows))
                self.arrays.append(part)
                rows.append((key, parent, kind, known.name))
            elif known.action == _OBJECT:
                if known.kind is not None and kind not in _FIXED:
                    kind = known.kind
                first = seen.get(id(part))
                if first is None:
                    seen[id(part)] = node = len(rows)
                    self._objects.append((node, part))
                    waiting += self._inside(known.opener, part, node, (key, parent, kind))
                elif first != NONE:
                    self.links.append((len(rows), first))
                if first != NONE:
                    rows.append((key, parent, kind, known.name))
            elif (size := self._host_bytes(known.action, part)) > 0:
                self.host.append((len(rows), size))
                rows.append((key, parent, kind, known.name))

    def _inside(
        self, opener: contents.Opener | None, part: Any, node: int, row: tuple[Any, int, str]
    ) -> list[tuple[Any, Any, int, str]]:
        assert opener is not None
        key, parent, kind = row
        skipped, most = self._skipped, min(ITEMS, max(self._left, 0))
        try:
            children = list(opener(part, most))
        except RuntimeError:  # another thread changed its size
            return []
        if len(children) >= most and (size := contents.size(part)) > most:
            self.stopped.append(f"only {most:,} of {size:,} in {self._where(key, parent)}")
        children.reverse()
        return [(key, each, node, kind) for key, each in children if type(each) not in skipped]

    def _host_bytes(self, action: int, part: Any) -> int:
        """Memory beside MLX, the first time that it is found."""
        if action == _NUMPY:  # of the array that a view leads to, where that owns its memory
            while issubclass(type(part.base), self._bases[1]):
                part = part.base
            size = int(part.nbytes) if part.flags.owndata else 0
        else:
            size = len(part) if action == _BYTES else 0
        if id(part) in self._host_seen:
            return 0
        self._host_seen.add(id(part))
        return size

    def _class(self, kind: type) -> _Class:
        known = self._classes.get(kind)
        if known is None:
            known = self._classes[kind] = self._look_at(kind)
            if known.action == _SKIP:
                self._skipped.add(kind)
        return known

    def _look_at(self, kind: type) -> _Class:
        for action, base in zip((_ARRAY, _NUMPY), self._bases, strict=True):
            if issubclass(kind, base):
                return _Class(kind.__name__, action)
        if issubclass(kind, (bytes, bytearray)):
            return _Class(kind.__name__, _BYTES)
        opener = contents.opener(kind)
        counts_as = next((as_ for base, as_ in self._owners if issubclass(kind, base)), None)
        if counts_as is None and contents.comes_from(kind, "mlx_lm.models.cache"):
            counts_as = CACHES
        if counts_as == OPTIMIZER and opener is not None:
            opener = _in_public(opener)  # `state` is a property
        action = _SKIP if opener is None else _OBJECT
        return _Class(kind.__name__, action, opener, counts_as)

    def _is_over(self) -> bool:
        if self._left <= 0 or time.perf_counter() > self._until:
            return True
        if self._beside:
            time.sleep(1e-4)  # without it, others would wait for the GIL by turns of 5 ms
        return False

    def _where(self, key: Any, parent: int) -> str:
        found = [contents.label(key)]
        while parent >= 0:
            key, parent, _, _ = self.rows[parent]
            found.append(contents.label(key))
        return ".".join(reversed(found))


def _references(objects: list[tuple[int, Any]]) -> list[int]:
    return [sys.getrefcount(value) for _, value in objects]


def _in_public(opener: contents.Opener) -> contents.Opener:
    def opened(value: Any, most: int) -> list[contents.Child]:
        return [(contents.label(key).lstrip("_"), each) for key, each in opener(value, most)]

    return opened


def _given(give: Any) -> Any:
    """What a holder says; a holder that fails leaves its arrays unattributed."""
    try:
        found: Any = give()
    except Exception:
        return []
    return found if isinstance(found, (dict, list, tuple)) else list(found)
