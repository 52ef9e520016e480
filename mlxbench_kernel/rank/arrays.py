"""Values that move between the notebook and the ranks: arrays as raw buffers, bit for bit.

A value is taken apart into its arrays and the rest. The arrays travel as NumPy views of
MLX's own memory, without a copy on the sending side; what NumPy has no type for (bfloat16)
travels as unsigned integers of the same width. The rest is pickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np


class Parts(NamedTuple):
    """A value taken apart.

    Attributes
    ----------
    structure
        Pickled; holds a mark where an array was.
    arrays
        C-contiguous NumPy arrays that share memory with the value's where it was contiguous.
    dtypes
        For each of them MLX's name of the dtype, "" for a NumPy array.
    """

    structure: bytes
    arrays: list[np.ndarray[Any, Any]]
    dtypes: list[str]


def take_apart(value: Any) -> Parts:
    """Split a value into pickled structure and arrays.

    Parameters
    ----------
    value
        Anything that pickles, with `mlx.core.array` (every dtype) and NumPy arrays at any place
        in it. MLX arrays are evaluated.

    Raises
    ------
    TypeError
        A part cannot be pickled; the message says which.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(value)
    except Exception as error:
        path, part, reason = _culprit(value, error)
        raise TypeError(f"{path or 'it'} is a {type(part).__name__}: {reason}") from None
    return Parts(buffer.getvalue(), pickler.arrays, pickler.dtypes)


def put_together(structure: bytes, arrays: Sequence[Any]) -> Any:
    """Undo `take_apart`; MLX arrays come back with the dtype they had.

    Parameters
    ----------
    structure, arrays
        As from `take_apart`; MLX arrays may stand where MLX memory was received into
        (`pieces.Landing`).
    """
    return _Unpickler(structure, arrays).load()


class _Pickler(pickle.Pickler):
    """Leaves the arrays out: marks them by their index and MLX's name of the type, or ""."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.dtypes: list[str] = []
        self._marks: dict[int, tuple[Any, tuple[int, str]]] = {}

    def persistent_id(self, part: Any) -> tuple[int, str] | None:
        is_mlx = isinstance(part, mx.array)
        # Subclasses, as masked arrays, hold more than their numbers; they pickle themselves.
        if not is_mlx and (type(part) is not np.ndarray or not _is_buffer(part)):
            return None
        if id(part) not in self._marks:
            dtype = str(part.dtype).removeprefix("mlx.core.") if is_mlx else ""
            whole = _view(part) if is_mlx else np.ascontiguousarray(part).reshape(part.shape)
            mark = (len(self.arrays), dtype)
            self.arrays.append(whole)
            self.dtypes.append(dtype)
            self._marks[id(part)] = part, mark  # held, so that no other array gets its id
        return self._marks[id(part)][1]


class _Unpickler(pickle.Unpickler):
    def __init__(self, structure: bytes, arrays: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(structure))
        self._arrays = arrays
        self._done: dict[int, Any] = {}

    def persistent_load(self, mark: tuple[int, str]) -> Any:
        index, dtype = mark
        if index not in self._done:
            self._done[index] = _restore(self._arrays[index], dtype)
        return self._done[index]


def _is_buffer(array: np.ndarray[Any, Any]) -> bool:
    """Whether ipyparallel sends it as it is; not so datetime64, nor another byte order."""
    try:
        plain = array.dtype.isnative and not array.dtype.hasobject
        return plain and array.data is not None
    except ValueError:
        return False


def _restore(array: Any, dtype: str) -> Any:
    if not dtype:
        return array if array.flags.writeable else array.copy()
    if not isinstance(array, mx.array):
        array = mx.array(array, dtype=mlx_dtype(array.dtype))
    return array.view(mx.bfloat16) if dtype == "bfloat16" else array


def mlx_dtype(dtype: np.dtype[Any]) -> mx.Dtype:
    """MLX's dtype of the same name."""
    found: mx.Dtype = getattr(mx, "bool_" if dtype.name == "bool" else dtype.name)
    return found


def _culprit(value: Any, error: Exception) -> tuple[str, Any, Exception]:
    """The innermost part that does not pickle: its path, itself, and why."""
    path, part, reason = "", value, error
    while True:
        for step, item in _items(part):
            try:
                _Pickler(io.BytesIO()).dump(item)
            except Exception as inner:
                path, part, reason = path + step, item, inner
                break
        else:
            return path, part, reason


def _items(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        yield from ((f"[{key!r}]", item) for key, item in part.items())
    elif isinstance(part, tuple) and hasattr(part, "_fields"):
        yield from ((f".{name}", getattr(part, name)) for name in part._fields)
    elif isinstance(part, (list, tuple)):
        yield from ((f"[{index}]", item) for index, item in enumerate(part))


def _view(array: mx.array) -> np.ndarray[Any, Any]:
    array = mx.contiguous(array)
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.array(array, copy=False)
