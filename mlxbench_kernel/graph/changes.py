"""What a captured call changes, and everything put back as it was."""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.containers import CONTAINERS, contents, holds, refill
from mlxbench_kernel.graph.trace_history import COMPILED
from mlxbench_kernel.graph.trees import PLAIN, all_plain, is_the_users

_ABSENT = object()
_OWN = ("__dict__", "__weakref__", "__doc__", "__module__")  # of a class, and not to be set


@contextmanager
def kept(*roots: Any, namespace: dict[str, Any] | None = None) -> Iterator[Changes]:
    """Put back after the block what it changes in these objects, and ``mx.random.state``.

    Parameters
    ----------
    *roots
        Modules, optimizers, dicts, lists, sets, arrays, functions, classes, and objects of the
        user's classes; what they hold is put back too.
    namespace
        Whose names are bound again to what they were; what they hold has to be among `roots`.
    """
    changes = Changes(roots, namespace)
    try:
        yield changes
    finally:
        changes.put_back()


class Changes:
    """The state of objects at one moment.

    Without the native module arrays that are changed in place are not put back.

    Parameters
    ----------
    roots, namespace
        As in `kept`.
    """

    def __init__(self, roots: Iterable[Any], namespace: dict[str, Any] | None) -> None:
        self._module = native.load()
        self._containers: list[tuple[Any, Any]] = []
        self._attributes: list[tuple[Any, dict[str, Any]]] = []  # of slots and of classes
        self._arrays: list[tuple[mx.array, mx.array]] = []
        self._random = _random_state()
        self._key = self._random[0]
        self._cells: list[tuple[types.CellType, Any]] = []
        self._namespaces: set[int] = set()
        if namespace is not None:
            self._keep_names(namespace)
        seen: set[int] = set()
        waiting = list(roots)
        while waiting:
            value = waiting.pop()
            if isinstance(value, PLAIN) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, mx.array):
                self._arrays.append((value, self._handle(value)))
            else:
                waiting += self._keep(value)

    def _handle(self, array: mx.array) -> mx.array:
        return array if self._module is None else self._module.handle(array)

    def _keep(self, value: Any) -> list[Any]:
        """Keep what an object holds; gives what there is to be kept in turn."""
        inside: list[Any] = []
        if isinstance(value, CONTAINERS):
            held = contents(value)
            self._containers.append((value, held))
            values = held.values() if isinstance(held, dict) else held
            inside += () if all_plain(values) else values
        elif isinstance(value, (tuple, frozenset)):
            inside += value
        elif type(value) is COMPILED:  # of mx.compile: its inputs, outputs and function
            inside += gc.get_referents(value)[1:]
        elif isinstance(value, functools.partial):
            inside += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            inside += [value.__self__, value.__func__]
        if not may_change(value):
            return inside
        if isinstance(value, type):
            return inside + self._keep_attributes(value, _own_names(value))
        if isinstance(value, types.FunctionType):
            inside += self._keep_variables(value)
        else:
            inside.append(type(value))
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            self._containers.append((own, dict(own)))
            inside += own.values()
        return inside + self._keep_attributes(value, _slots(type(value)))

    def _keep_variables(self, function: types.FunctionType) -> list[Any]:
        """Keep what a function's outer variables and defaults are."""
        self._keep_names(function.__globals__)
        names = dict.fromkeys(_global_names(function.__code__))  # in an order: ranks are compared
        cells = [cell for cell in function.__closure__ or () if _is_full(cell)]
        self._cells += [(cell, cell.cell_contents) for cell in cells]
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        used = [function.__globals__[name] for name in names if name in function.__globals__]
        return [*defaults, *used, *(cell.cell_contents for cell in cells)]

    def _keep_names(self, namespace: dict[str, Any]) -> None:
        if id(namespace) not in self._namespaces:
            self._namespaces.add(id(namespace))
            self._containers.append((namespace, dict(namespace)))

    def _keep_attributes(self, value: Any, names: list[str]) -> list[Any]:
        if not names:
            return []
        attributes = {name: _attribute(value, name) for name in names}
        self._attributes.append((value, attributes))
        return [each for each in attributes.values() if each is not _ABSENT]

    def changed(self) -> list[mx.array]:
        """The arrays that are in these objects now and were not there then."""
        found = []
        for container, before in self._containers:
            if holds(container, before):
                continue
            values = container.values() if isinstance(container, dict) else container
            known = {id(v) for v in (before.values() if isinstance(before, dict) else before)}
            found += [v for v in values if isinstance(v, mx.array) and id(v) not in known]
        pairs = [(cell.cell_contents, held) for cell, held in self._cells if _is_full(cell)]
        for value, attributes in self._attributes:
            pairs += [(_attribute(value, name), held) for name, held in attributes.items()]
        found += [now for now, held in pairs if isinstance(now, mx.array) and now is not held]
        if self._module is not None:
            found += [
                array
                for array, handle in self._arrays
                if self._module.array_id(array) != self._module.array_id(handle)
            ]
        return found

    def only_here(self, others: Iterable[mx.array] = ()) -> list[mx.array]:
        """The array objects that nobody but this one holds any more.

        Parameters
        ----------
        others
            More that may be held by nothing but this iterable.
        """
        ours: Counter[int] = Counter()
        objects: dict[int, mx.array] = {}
        for array in chain(self._held(), others):
            ours[id(array)] += 1
            objects[id(array)] = array
        found = [] if self._module is None else [handle for _, handle in self._arrays]
        for number in objects:
            array = objects[number]
            # The dict, the name and the argument of the call are three more.
            if sys.getrefcount(array) <= ours[number] + 3:
                found.append(array)
        return found

    def _held(self) -> Iterator[mx.array]:
        """Each array as often as this object holds it."""
        for _, before in self._containers:
            values = before.values() if isinstance(before, dict) else before
            yield from (value for value in values if isinstance(value, mx.array))
        for _, attributes in self._attributes:
            yield from (value for value in attributes.values() if isinstance(value, mx.array))
        yield from (held for _, held in self._cells if isinstance(held, mx.array))
        yield from (array for array, _ in self._arrays)

    def put_back(self) -> None:
        """Make everything what it was."""
        for container, before in self._containers:
            if not holds(container, before):
                refill(container, before)
        for value, attributes in self._attributes:
            _put_back_attributes(value, attributes)
        for cell, held in self._cells:
            cell.cell_contents = held
        self._random[0] = self._key
        if self._module is not None:
            for array, handle in self._arrays:
                if self._module.array_id(array) != self._module.array_id(handle):
                    self._module.put_back(array, handle)


def _random_state() -> list[mx.array]:
    """The list of one key that ``mx.random`` draws from in this thread.

    ``mx.random.state`` stands for it, but cannot be assigned to (MLX, ``python/src/random.cpp``);
    what iterates over it names it, as it is pickled.
    """
    state: Any = mx.random.state
    keys: list[mx.array] = iter(state).__reduce__()[1][0]
    return keys


def may_change(value: Any) -> bool:
    """Whether attributes of an object are put back: MLX's, and what the user wrote."""
    if isinstance(value, (optim.Optimizer, Module)):
        return True
    if isinstance(value, (type, types.FunctionType)):
        return is_the_users(value)
    return is_the_users(type(value))


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Those that a function may look up among its globals, also in functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not _ABSENT
    except ValueError:
        return False


def _own_names(kind: type) -> list[str]:
    """The attributes of a class that a program may set."""
    fixed = (types.FunctionType, types.GetSetDescriptorType, types.MemberDescriptorType, property)
    return [
        name
        for name, value in vars(kind).items()
        if name not in _OWN and not isinstance(value, (*fixed, classmethod, staticmethod))
    ]


def _slots(kind: type) -> list[str]:
    found = (vars(each).get("__slots__", ()) for each in kind.__mro__)
    names = [name for each in found for name in ([each] if isinstance(each, str) else each)]
    return [name for name in names if name not in _OWN]


def _attribute(value: Any, name: str) -> Any:
    if isinstance(value, type):
        return vars(value).get(name, _ABSENT)
    return getattr(value, name, _ABSENT)


def _put_back_attributes(value: Any, attributes: dict[str, Any]) -> None:
    new = _own_names(value) if isinstance(value, type) else []
    for name in {*attributes, *new}:
        before = attributes.get(name, _ABSENT)
        if _attribute(value, name) is before:
            continue
        if isinstance(value, type):
            set_it, delete = type.__setattr__, type.__delattr__
        else:
            set_it, delete = object.__setattr__, object.__delattr__
        if before is _ABSENT:
            delete(value, name)
        else:
            set_it(value, name, before)
