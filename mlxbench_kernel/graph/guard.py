"""Runs the user's function so that it makes a graph and nothing else.

``mx.eval`` and ``mx.async_eval`` do nothing; whatever reads a value stops the function; modules,
optimizers, arrays and the random state are put back afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.trees import arrays_in, is_the_users
from mlxbench_kernel.lines import calling_line

# What of an array evaluates it. NumPy reads through the buffer, which only native code can close.
READS = {
    "item": ".item()", "tolist": ".tolist()", "__bool__": "its truth (if, while, and)",
    "__float__": "float()", "__int__": "int()", "__complex__": "complex()", "__index__": "an index",
    "__repr__": "print or repr", "__str__": "print or str", "__format__": "an f-string",
    "__array__": "numpy", "__bytes__": "bytes()", "__dlpack__": "dlpack", "__reduce__": "pickle",
    "__getstate__": "pickle", "save": "mx.save",
}  # fmt: skip


class ReadError(UsageError):
    """Something read the value of an array, which would have evaluated it."""


class Guard:
    """What has been asked to be evaluated while a function ran under `guarded`.

    Attributes
    ----------
    evaluated : list of mlx.core.array
        What ``mx.eval`` and ``mx.async_eval`` were given.
    """

    def __init__(self) -> None:
        self.evaluated: list[mx.array] = []

    def _note(self, *trees: Any) -> None:
        self.evaluated += arrays_in(trees)


@contextmanager
def guarded() -> Iterator[Guard]:
    """Nothing is evaluated in the block.

    Raises
    ------
    ReadError
        The block reads a value; names the line.
    """
    guard = Guard()
    module = native.load()
    functions = {name: getattr(mx, name) for name in ("eval", "async_eval", "synchronize")}
    methods = {name: getattr(mx.array, name) for name in READS if hasattr(mx.array, name)}
    try:
        for name in functions:
            setattr(mx, name, guard._note if name != "synchronize" else _nothing)
        for name, method in methods.items():
            setattr(mx.array, name, _refusing(READS[name], method))
        if module is not None:
            module.refuse_buffers(lambda array: _refuse("numpy", array))
        yield guard
    finally:
        if module is not None:
            module.refuse_buffers(None)
        for name, method in methods.items():
            setattr(mx.array, name, method)
        for name, function in functions.items():
            setattr(mx, name, function)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Functions of ``mx.compile`` are called as what they were made from; then as before.

    MLX does not tell whether compilation is on (``MLX_DISABLE_COMPILE``, ``mx.disable_compile``),
    so it is tried: a compiled function is traced only once.
    """
    calls: list[mx.array] = []

    def probe(x: mx.array) -> mx.array:
        calls.append(x)
        return x

    compiled, x = mx.compile(probe), mx.array(0)
    compiled(x)
    compiled(x)
    was_on = len(calls) == 1
    mx.disable_compile()
    try:
        yield
    finally:
        if was_on:
            mx.enable_compile()


def _nothing(*_: Any, **__: Any) -> None:
    """What ``mx.synchronize`` does meanwhile: nothing is on its way."""


def _refusing(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def read(array: mx.array, *arguments: Any, **keywords: Any) -> Any:
        if _is_lazy(array):
            _refuse(what, array)
        return method(array, *arguments, **keywords)

    return read


def _is_lazy(array: mx.array) -> bool:
    module = native.load()
    if module is None:
        return True
    return bool(module.is_lazy(array))


def _refuse(what: str, array: mx.array) -> None:
    if _is_lazy(array):
        dtype = str(array.dtype).removeprefix("mlx.core.")
        line = calling_line(sys._getframe(2))
        where = f"{line.text} ({line.function})" if line.text else "something"
        raise ReadError(
            f"{where} reads a value ({what}) of a {dtype} array of shape "
            f"{list(array.shape)}, which would evaluate it: capture a function without that line"
        )


@contextmanager
def kept(*roots: Any, namespace: dict[str, Any] | None = None) -> Iterator[Changes]:
    """Put back after the block what it changes in these objects, and ``mx.random.state``.

    Parameters
    ----------
    *roots
        Namespaces, modules, optimizers, dicts, lists, arrays, and objects of the user's classes;
        what they hold is put back too.
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

    Parameters
    ----------
    roots, namespace
        As in `kept`.
    """

    def __init__(self, roots: tuple[Any, ...], namespace: dict[str, Any] | None) -> None:
        self._module = native.load()
        self._containers: list[tuple[Any, Any]] = []
        self._arrays: list[tuple[mx.array, mx.array]] = []
        self._key = self._handle(_random_key())
        if namespace is not None:
            self._containers.append((namespace, dict(namespace)))
        seen: set[int] = set()
        waiting = list(roots)
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, mx.array):
                self._arrays.append((value, self._handle(value)))
                continue
            own = getattr(value, "__dict__", None)
            if isinstance(value, dict):
                self._containers.append((value, dict(value)))
                waiting += value.values()
            elif isinstance(value, list):
                self._containers.append((value, list(value)))
                waiting += value
            elif isinstance(value, tuple):
                waiting += value
            if isinstance(own, dict) and _may_change(value):
                self._containers.append((own, dict(own)))
                waiting += own.values()

    def _handle(self, array: mx.array) -> mx.array:
        return array if self._module is None else self._module.handle(array)

    def changed(self) -> list[mx.array]:
        """The arrays that are in these objects now and were not there then."""
        found = []
        for container, before in self._containers:
            values = container.values() if isinstance(container, dict) else container
            known = {id(v) for v in (before.values() if isinstance(before, dict) else before)}
            found += [v for v in values if isinstance(v, mx.array) and id(v) not in known]
        for array, handle in self._arrays:
            if self._module is not None and (
                self._module.array_id(array) != self._module.array_id(handle)
            ):
                found.append(array)
        return found

    def put_back(self) -> None:
        """Make everything what it was."""
        for container, before in self._containers:
            if isinstance(container, list):
                container[:] = before
                continue
            for key in [key for key in container if key not in before]:
                dict.__delitem__(container, key)
            for key, value in before.items():
                if container.get(key) is not value:
                    dict.__setitem__(container, key, value)
        if self._module is not None:
            for array, handle in self._arrays:
                if self._module.array_id(array) != self._module.array_id(handle):
                    self._module.put_back(array, handle)
            if self._module.array_id(_random_key()) != self._module.array_id(self._key):
                self._module.put_back(_random_key(), self._key)


def _random_key() -> mx.array:
    key: mx.array = mx.random.state[0]  # type: ignore[index]
    return key


def _may_change(value: Any) -> bool:
    return isinstance(value, optim.Optimizer) or is_the_users(type(value))
