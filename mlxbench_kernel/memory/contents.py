"""What an object holds, found without running any code of its class.

Containers, attributes, slots, closures, generators and wrapped functions are looked into; modules,
classes and the machinery of notebooks, which lead to everything there is, are not.
"""

from __future__ import annotations

import functools
import gc
import itertools
import re
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from mlxbench_kernel.holding import HELD, held_by

PLAIN = frozenset({str, int, float, complex, bool, type(None), type, types.ModuleType, slice,
                   types.BuiltinFunctionType, types.CodeType, range, object})  # fmt: skip
# Whose objects lead to everything there is, or hold it for us and tell it in `memory.HOLDERS`.
FOREIGN = frozenset({"IPython", "traitlets", "ipykernel", "ipyparallel", "zmq", "logging",
                     "mlxbench_kernel"})  # fmt: skip
_SEQUENCES = (list, tuple, set, frozenset, deque)
_NEVER = (str, int, float, complex, type, types.ModuleType, types.BuiltinFunctionType)
# C types whose contents have no names, only what the garbage collector sees.
_COLLECTED: tuple[type, ...] = (
    types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType,
    BaseException, map, filter, zip, enumerate, reversed, itertools.chain, itertools.cycle,
    itertools.islice, type(iter([])), type(iter(())), type(functools.lru_cache(len)),
)  # fmt: skip
_OWN = re.compile(r"_{1,3}|_i{1,3}|_i?\d+|_ih|_oh|_dh|_mlxbench_.*|In|Out")
_WRAPPERS = frozenset({"mlx", "mlx.core", "mlx.gc"})  # of mx.compile, mx.custom_function

Child = tuple[Any, Any]
Opener = Callable[[Any, int], Iterable[Child]]


def opener(kind: type) -> Opener | None:
    """How instances of a class are looked into.

    Parameters
    ----------
    kind
        The class.

    Returns
    -------
    callable or None
        Of an instance and a number, it gives that many of its children at most, as
        (key, object); a key may be any object and is not to be used but through `label`. None
        where there is nothing to look for.
    """
    if HELD in vars(kind):
        return lambda value, _: held_by(value).items()
    if (
        kind in PLAIN
        or issubclass(kind, _NEVER)
        or not FOREIGN.isdisjoint(map(_origin, _mro(kind)))
    ):
        return None
    if issubclass(kind, types.FunctionType):
        return _of_function
    if issubclass(kind, types.MethodType):
        return lambda method, _: [("__self__", method.__self__), ("__func__", method.__func__)]
    if issubclass(kind, functools.partial):
        return _of_partial
    if issubclass(kind, types.TracebackType):
        return _of_traceback
    if issubclass(kind, _COLLECTED) or _module(kind) in _WRAPPERS:
        return lambda value, most: enumerate(_collected(value)[:most])
    openers: list[Opener] = [_of_attributes] if _has_attributes(kind) else []
    if slots := list(_slots(kind)):
        openers.append(lambda value, _: _of_slots(value, slots))
    if issubclass(kind, dict):
        openers.insert(0, _of_dict)
    elif base := next((each for each in _SEQUENCES if issubclass(kind, each)), None):
        openers.insert(0, _of_sequence(base))
    if len(openers) < 2:
        return openers[0] if openers else None
    return lambda value, most: itertools.chain(*[each(value, most) for each in openers])


def comes_from(kind: type, module: str) -> bool:
    """Whether a class, or one of its bases, was made in a module."""
    return any(_module(base) == module for base in _mro(kind))


def is_own_name(name: str) -> bool:
    """Whether IPython keeps results and inputs under a name (_, __, _3, _i3, Out), or we do."""
    return _OWN.fullmatch(name) is not None


def size(value: Any) -> int:
    """How many things a container holds, past its class; 0 where it is none."""
    kind = type(value)
    base = next((each for each in (dict, *_SEQUENCES) if issubclass(kind, each)), None)
    return 0 if base is None else base.__len__(value)


def label(key: Any) -> str:
    """A key as text, without running code of its class."""
    kind = type(key)
    if kind is str:
        return str(key)
    if kind in (int, float, bool, bytes, type(None)):
        return repr(key)
    if kind is tuple and all(type(each) in (int, str, float, bool) for each in key):
        return repr(key)
    return f"<{kind.__name__}>"


def _of_dict(value: Any, most: int) -> list[Child]:
    # In one go: no other thread can change it meanwhile.
    return list(islice(dict.items(value), most))


def _of_sequence(base: Any) -> Opener:
    return lambda value, most: list(enumerate(islice(base.__iter__(value), most)))


def _of_attributes(value: Any, most: int) -> list[Child]:
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return []
    return _of_dict(attributes, most) if issubclass(type(attributes), dict) else []


def _of_slots(value: Any, slots: list[tuple[str, Any]]) -> Iterator[Child]:
    for name, slot in slots:
        try:
            yield name, slot.__get__(value)
        except AttributeError:  # nothing was put there
            pass


def _of_function(function: Any, _: int) -> Iterator[Child]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # empty
            pass
    yield from enumerate(function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()
    yield from function.__dict__.items()


def _of_partial(part: Any, _: int) -> Iterator[Child]:
    yield "func", part.func
    yield from enumerate(part.args)
    yield from part.keywords.items()


def _of_traceback(traceback: Any, _: int) -> Iterator[Child]:
    yield f"in {traceback.tb_frame.f_code.co_name}", traceback.tb_frame
    yield "next", traceback.tb_next


def _collected(value: Any) -> list[Any]:
    # Not by way of a frame's f_locals: until Python 3.13 that keeps what it gave alive.
    return gc.get_referents(value)


def _mro(kind: type) -> tuple[type, ...]:
    return type.__dict__["__mro__"].__get__(kind)  # type: ignore[no-any-return]


def _module(kind: type) -> str:
    module = type.__dict__["__dict__"].__get__(kind).get("__module__")
    return module if type(module) is str else ""


def _origin(kind: type) -> str:
    return _module(kind).split(".")[0]


def _has_attributes(kind: type) -> bool:
    return bool(kind.__dictoffset__)


def _slots(kind: type) -> Iterator[tuple[str, Any]]:
    for base in _mro(kind):
        names = type.__dict__["__dict__"].__get__(base)
        if "__slots__" in names:
            for name, slot in names.items():
                if type(slot) is types.MemberDescriptorType:
                    yield name, slot
