"""An object that stands for a function, so that nobody who asks it for attributes can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

# What makes a class, or has to stay the stand-in's own. `__qualname__` is a slot, because a class
# can have no attribute of that name in any other way.
OWN = {
    "__call__", "__class_getitem__", "__del__", "__delattr__",
    "__dict__", "__getattr__", "__getattribute__", "__init__",
    "__init_subclass__", "__new__", "__qualname__", "__setattr__",
    "__slots__", "__subclasshook__", "__weakref__",
}  # fmt: skip
_CLASSES: WeakKeyDictionary[type, dict[type, type]] = WeakKeyDictionary()


class StandIn:
    """Is called instead of a function and has its attributes.

    ``mx.compile`` gives what it returns the attributes of what it was given, found by
    ``PyObject_GenericGetAttr`` (MLX, ``python/src/mlx_func.cpp``), which asks the type and the
    ``__dict__`` and no ``__getattr__``: so both are made to answer as the function's do. Subclasses
    define ``__call__``, which is not forwarded.

    Attributes
    ----------
    mlxbench_function : callable
        What it stands for.
    """

    __slots__ = ("__dict__", "__qualname__", "__weakref__", "mlxbench_function")

    mlxbench_function: Callable[..., Any]

    def __new__(cls, function: Callable[..., Any], *_: Any) -> StandIn:
        made: StandIn = object.__new__(_class_for(cls, type(function)))
        return made

    def __init__(self, function: Callable[..., Any]) -> None:
        self.mlxbench_function = function
        for name, put in (("__dict__", _PUT_DICT), ("__qualname__", _PUT_QUALNAME)):
            try:
                put(self, object.__getattribute__(function, name))
            except AttributeError:  # a builtin, a bound method, an object of the user's
                pass


_PUT_DICT, _PUT_QUALNAME = (vars(StandIn)[name].__set__ for name in ("__dict__", "__qualname__"))


class _Forward:
    """Of the function, whatever is looked up."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: StandIn | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return object.__getattribute__(instance.mlxbench_function, self._name)

    def __set__(self, instance: StandIn, value: Any) -> None:
        setattr(instance.mlxbench_function, self._name, value)


def _class_for(base: type, kind: type) -> type:
    """A class of stand-ins of one kind of function; made once."""
    made = _CLASSES.setdefault(kind, {})
    if base not in made:
        names = [name for name in dir(kind) if name not in OWN]
        forwards = {name: _Forward(name) for name in (*names, "__dict__")}
        made[base] = type(kind.__name__, (base,), {"__slots__": (), **forwards})
    return made[base]
