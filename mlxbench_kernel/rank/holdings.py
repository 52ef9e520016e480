"""The largest variables of a rank, found without evaluating or disturbing anything.

A walk may run in a thread beside the one that runs cells. What it costs is bounded, and it looks
only where looking runs nobody's code: into plain containers, modules of ``mlx.nn`` and the
attributes of objects.
"""

from __future__ import annotations

import time
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from IPython.core.autocall import IPyAutocall
from traitlets import HasTraits

from mlxbench_kernel import native

COUNT = 5
LEAST = 10_000  # bytes; less is not worth a name
SECONDS = 0.02
OBJECTS = 20_000
TEXT = 60  # characters of a name or kind
_LOOKS = 500  # between two looks at the clock, and two chances for the other threads
_NEVER_INSIDE = (  # IPython's own objects lead to everything there is
    HasTraits, IPyAutocall,
    types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type,
    str, int, float, complex, bool, type(None),
)  # fmt: skip


@dataclass(frozen=True)
class Held:
    """What one variable holds.

    Attributes
    ----------
    name
        The variable.
    bytes
        Of the buffers that it leads to and no variable named before it does.
    kind
        Dtype and shape of an array, ``"float32 (3, 4)"``, else the name of its type.
    """

    name: str
    bytes: int
    kind: str


def largest(
    namespace: Mapping[str, Any],
    hidden: Collection[str] = (),
    *,
    seconds: float = SECONDS,
    objects: int = OBJECTS,
) -> list[Held]:
    """The variables that hold most: at most `COUNT`, each at least `LEAST` bytes, largest first.

    Real buffers are counted, each once: a view costs nothing beside its array, and an array that
    is not evaluated nothing at all. Without the native module MLX arrays count as nothing, since
    all that MLX itself offers would change them under the thread that uses them.

    Parameters
    ----------
    namespace
        Variables by name; it may change meanwhile.
    hidden
        Names that were not given by the user. They come last, so that what ``Out`` holds is
        counted there only where no variable has it.
    seconds, objects
        After that much time, or that many objects, the rest is left out.
    """
    walk = _Walk(seconds, objects, seen={id(namespace)})
    variables = sorted(
        namespace.items(),
        key=lambda item: (item[0] in hidden or item[0].startswith("_"), item[0].startswith("_")),
    )
    owners: list[int] = []
    arrays: list[Any] = []
    sizes = dict.fromkeys(range(len(variables)), 0)
    try:
        for index, (_, value) in enumerate(variables):
            for array, size in walk.inside(value):
                if array is None:
                    sizes[index] += size
                else:
                    owners.append(index)
                    arrays.append(array)
    except _Enough:
        pass
    counted: set[int] = set()
    for index, (buffer, size) in zip(owners, _buffers(arrays), strict=True):
        if buffer not in counted:
            counted.add(buffer)
            sizes[index] += size
    order = sorted(sizes, key=lambda index: -sizes[index])[:COUNT]
    return [
        Held(variables[index][0][:TEXT], sizes[index], _kind(variables[index][1]))
        for index in order
        if sizes[index] >= LEAST
    ]


class _Enough(Exception):
    """Time is up, or enough objects were seen."""


class _Walk:
    """Goes through objects, into each of them once."""

    def __init__(self, seconds: float, objects: int, seen: set[int]) -> None:
        import mlx.core as mx
        import numpy as np

        self._mlx, self._numpy = mx.array, np.ndarray
        self._until = time.perf_counter() + seconds
        self._left = objects
        self._seen = seen

    def inside(self, value: Any) -> Iterator[tuple[Any, int]]:
        """Each MLX array in `value` as ``(array, 0)``, and other memory as ``(None, bytes)``."""
        waiting = [value]
        while waiting:
            part = waiting.pop()
            kind = type(part)
            self._spend()
            if id(part) in self._seen or issubclass(kind, _NEVER_INSIDE):
                continue
            self._seen.add(id(part))
            if issubclass(kind, self._mlx):
                yield part, 0
            elif issubclass(kind, self._numpy):
                yield None, self._numpy_bytes(part)
            elif issubclass(kind, (bytes, bytearray)):
                yield None, len(part)
            else:
                waiting += self._first(_items(kind, part))
                waiting += self._first(_attributes(part))

    def _first(self, items: Iterable[Any]) -> list[Any]:
        """As many as may still be looked at, in one go: no other thread can run meanwhile."""
        return list(islice(items, max(self._left, 0)))

    def _spend(self) -> None:
        self._left -= 1
        if self._left % _LOOKS == 0:
            if self._left <= 0 or time.perf_counter() > self._until:
                raise _Enough
            time.sleep(1e-4)  # without it, others would wait for the GIL by turns of 5 ms

    def _numpy_bytes(self, array: Any) -> int:
        """Bytes of the array that a view leads to; 0 where that was counted, or owns nothing."""
        root = array
        while issubclass(type(root.base), self._numpy):
            root = root.base
        if root is not array:
            if id(root) in self._seen:
                return 0
            self._seen.add(id(root))
        return int(root.nbytes) if root.flags.owndata else 0


def _items(kind: type, part: Any) -> Iterable[Any]:
    """What is in a container, past any method of its class."""
    if issubclass(kind, dict):
        return dict.values(part)
    for base in (list, tuple, set, frozenset, deque):
        if issubclass(kind, base):
            return base.__iter__(part)
    return ()


def _attributes(part: Any) -> Iterable[Any]:
    try:
        attributes = object.__getattribute__(part, "__dict__")
    except AttributeError:
        return ()
    return dict.values(attributes) if issubclass(type(attributes), dict) else ()


def _buffers(arrays: list[Any]) -> list[tuple[int, int]]:
    module = native.load()
    if module is None:
        return [(0, 0)] * len(arrays)
    found: list[tuple[int, int]] = module.buffers(arrays)
    return found


def _kind(value: Any) -> str:
    import mlx.core as mx
    import numpy as np

    kind = type(value).__name__
    if issubclass(type(value), (mx.array, np.ndarray)):
        kind = f"{str(value.dtype).removeprefix('mlx.core.')} {tuple(value.shape)}"
    return kind[:TEXT]
