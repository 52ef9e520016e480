"""Runs the user's function so that it makes a graph and nothing else.

``mx.eval`` and ``mx.async_eval`` do nothing, and whatever reads a value stops the function; in the
thread that captures, not in others.
"""

from __future__ import annotations

import functools
import inspect
import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import mlx.core as mx

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.trees import arrays_in
from mlxbench_kernel.lines import calling_line

# What of an array evaluates it. NumPy reads through the buffer, which only native code can close.
READS = {
    "item": ".item()", "tolist": ".tolist()", "__bool__": "its truth (if, while, and)",
    "__float__": "float()", "__int__": "int()", "__complex__": "complex()", "__index__": "an index",
    "__repr__": "print or repr", "__str__": "print or str", "__format__": "an f-string",
    "__array__": "numpy", "__bytes__": "bytes()", "__dlpack__": "dlpack", "__reduce__": "pickle",
    "__getstate__": "pickle",
}  # fmt: skip
SAVES = ("save", "savez", "savez_compressed", "save_safetensors", "save_gguf")
CAPTURE = "mlxbench_kernel.graph.capture"  # calls the user's function
MOST_EVALUATIONS = 64  # of which is noted what was held meanwhile; the last counts


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
        self._held: list[mx.array] = []  # in local variables during an evaluation
        self._known: set[int] = set()
        self._evaluations = 0

    def _evaluate(self, *trees: Any) -> None:
        found = [array for array in arrays_in(trees) if id(array) not in self._known]
        self._known.update(map(id, found))
        self.evaluated += found
        self._evaluations += bool(found)
        if found and self._evaluations <= MOST_EVALUATIONS:
            self._held = arrays_in(_local_variables(sys._getframe(1)))

    def _synchronize(self, *_: Any, **__: Any) -> None:
        """Nothing is on its way."""


@contextmanager
def guarded() -> Iterator[Guard]:
    """Nothing is evaluated in the block, by this thread.

    Raises
    ------
    ReadError
        The block reads a value; names the line.
    """
    guard, module = Guard(), native.load()
    instead: dict[str, Callable[..., Any]] = {
        "eval": guard._evaluate,
        "async_eval": guard._evaluate,
        "synchronize": guard._synchronize,
        **{name: _saving(name) for name in SAVES if hasattr(mx, name)},
    }
    with ExitStack() as stack:
        for name, function in instead.items():
            _replace(stack, name, function)
        for name, what in READS.items():
            if method := vars(mx.array).get(name):
                reading = _reading(what, method, threading.get_ident())
                stack.callback(setattr, mx.array, name, method)
                setattr(mx.array, name, reading)
        if module is not None:
            stack.callback(module.refuse_buffers, None)
            module.refuse_buffers(lambda array: _refuse("numpy", array))
        yield guard


def _replace(stack: ExitStack, name: str, instead: Callable[..., Any]) -> None:
    """Have a function of ``mlx.core`` do something else, whatever name the user has for it."""
    function, module = getattr(mx, name), native.load()
    original = inspect.unwrap(function)
    if module is not None and module.interpose(original, instead):
        stack.callback(module.withdraw, original)
        if original is function:
            return
    thread = threading.get_ident()

    @functools.wraps(function)
    def replaced(*arguments: Any, **keywords: Any) -> Any:
        result: Any = NotImplemented
        if threading.get_ident() == thread:
            result = instead(*arguments, **keywords)
        return function(*arguments, **keywords) if result is NotImplemented else result

    stack.callback(setattr, mx, name, function)
    setattr(mx, name, replaced)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Functions of ``mx.compile`` are called as what they were made from; then as before.

    MLX does not tell whether compilation is on (``MLX_DISABLE_COMPILE``, ``mx.disable_compile``),
    so it is tried: a compiled function is traced only once.
    """
    calls: list[int] = []
    compiled = inspect.unwrap(mx.compile)(lambda: calls.append(1))
    compiled()
    compiled()
    was_on = len(calls) == 1
    mx.disable_compile()
    try:
        yield
    finally:
        if was_on:
            mx.enable_compile()


def _saving(name: str) -> Callable[..., Any]:
    def save(*arguments: Any, **keywords: Any) -> Any:
        for array in arrays_in([arguments, keywords]):
            _refuse(f"mx.{name}", array)
        return NotImplemented  # what is evaluated is saved

    return save


def _reading(what: str, method: Callable[..., Any], thread: int) -> Callable[..., Any]:
    def read(array: mx.array, *arguments: Any, **keywords: Any) -> Any:
        if threading.get_ident() == thread:
            _refuse(what, array)
        return method(array, *arguments, **keywords)

    return read


def _is_lazy(array: mx.array) -> bool:
    module = native.load()
    if module is None:  # of an evaluated one MLX writes no primitive
        text = io.StringIO()
        mx.export_to_dot(text, array)
        return "shape=rectangle" in text.getvalue()
    return bool(module.is_lazy(array))


def _refuse(what: str, array: mx.array) -> None:
    """Stop the capture, where this array would have to be evaluated."""
    if _is_lazy(array):
        dtype = str(array.dtype).removeprefix("mlx.core.")
        line = calling_line(sys._getframe(1))
        inside = "" if line.function.startswith("<") else f" ({line.function})"
        where = f"{line.text}{inside}" if line.text else "something"
        where += f", in {line.inside}," if line.inside else ""
        raise ReadError(
            f"{where} reads a value ({what}) of a {dtype} array of shape "
            f"{list(array.shape)}, which would evaluate it: capture a function without that line"
        )


def _local_variables(frame: FrameType | None) -> list[Any]:
    """Those of the functions that called, up to the capture."""
    found: list[Any] = []
    while frame is not None and frame.f_globals.get("__name__") != CAPTURE:
        if frame.f_locals is not frame.f_globals:
            found += frame.f_locals.values()
        frame = frame.f_back
    return found
