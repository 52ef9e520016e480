"""The rank's side of push and pull; large arrays travel in pieces.

A message as large as a model would stand whole in the notebook's kernel, in the controller and
in the rank, each time in memory that is new to the process, and getting that costs the system
more than moving the bytes (256 MB on Linux: 0.4 s against 0.07 s, measured 2026-11-25). Pieces
pass through buffers that are used again, and are put where the array will stay.

One push and one pull at a time: a new one takes the place of one that was broken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxbench_kernel import native
from mlxbench_kernel.rank import arrays
from mlxbench_kernel.rank.stale import StaleError

PIECE = 16 * 2**20  # bytes; arrays up to this size travel whole


class Form(NamedTuple):
    """What is to be known of an array before its bytes come: NumPy's view of it, and MLX's name
    of the dtype, "" for a NumPy array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    mlx: str


class Landing:
    """Memory for one array, which its pieces are put into.

    Attributes
    ----------
    array : mlx.core.array or numpy.ndarray
        The array, of NumPy's dtype for it (uint16 for bfloat16).
    """

    def __init__(self, form: Form) -> None:
        self.array: Any
        if form.mlx:
            self.array = _blank(form.shape, arrays.mlx_dtype(form.dtype))
            whole = np.array(self.array, copy=False)
        else:
            whole = self.array = np.empty(form.shape, form.dtype)
        self._bytes = _bytes(whole)

    def put(self, offset: int, piece: Any) -> None:
        """Put bytes where they belong."""
        self._bytes[offset : offset + len(piece)] = piece


def _blank(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """MLX memory that will be written to."""
    module = native.load()
    if module is not None:
        array: mx.array = module.blank(shape, dtype)
    else:
        array = mx.zeros(shape, dtype, stream=mx.cpu)
        mx.eval(array)
    return array


class Sent(NamedTuple):
    """What travels of a value before the pieces.

    Attributes
    ----------
    structure
        See `arrays.Parts`.
    forms
        Of the large arrays, by their index.
    small
        The other arrays, in order.
    """

    structure: bytes
    forms: dict[int, Form]
    small: list[np.ndarray[Any, Any]]

    @classmethod
    def of(cls, parts: arrays.Parts) -> Sent:
        """Sort the arrays by size."""
        forms = {
            index: Form(array.shape, array.dtype, parts.dtypes[index])
            for index, array in enumerate(parts.arrays)
            if array.nbytes > PIECE
        }
        small = [array for index, array in enumerate(parts.arrays) if index not in forms]
        return cls(parts.structure, forms, small)

    def put_together(self, landed: Mapping[int, Landing]) -> Any:
        """The value, once its large arrays are there."""
        rest = iter(self.small)
        count = len(self.small) + len(self.forms)
        whole = [landed[i].array if i in landed else next(rest) for i in range(count)]
        return arrays.put_together(self.structure, whole)


def places(forms: Mapping[int, Form]) -> Iterator[tuple[int, int]]:
    """Index and offset in bytes of each piece."""
    for index, form in forms.items():
        size = form.dtype.itemsize * int(np.prod(form.shape))
        yield from ((index, offset) for offset in range(0, size, PIECE))


def piece(array: np.ndarray[Any, Any], offset: int) -> np.ndarray[Any, Any]:
    """The bytes of one piece of a contiguous array, without a copy."""
    return _bytes(array)[offset : offset + PIECE]


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.reshape(-1).view(np.uint8)


# -- called on a rank ----------------------------------------------------------

_expected: dict[int, Landing] = {}
_offered: dict[int, np.ndarray[Any, Any]] = {}


def expect(forms: Mapping[int, Form]) -> None:
    """Make room for the large arrays of a push."""
    forget()
    _expected.update({index: Landing(form) for index, form in forms.items()})


def put(index: int, offset: int, piece: np.ndarray[Any, Any]) -> None:
    """Take in one piece of a push."""
    _expected[index].put(offset, piece)


def bind(sent: Sent) -> None:
    """Put what was pushed (``{name: value}``) into the namespace."""
    from IPython import get_ipython

    get_ipython().user_ns.update(sent.put_together(_expected))
    forget()


def fetch(names: Sequence[str]) -> tuple[str, Any]:
    """Offer the named variables.

    Returns
    -------
    tuple
        ``("missing", names)``, ``("refused", message)`` or ``("ok", Sent)``.
    """
    from IPython import get_ipython

    namespace = get_ipython().user_ns
    missing = [name for name in names if name not in namespace]
    if missing:
        return ("missing", missing)
    try:
        get_ipython().kernel.cells.stale.require(names)
    except StaleError as error:
        return ("refused", str(error))
    try:
        return ("ok", _offer({name: namespace[name] for name in names}))
    except TypeError as error:
        return ("refused", str(error))


def fetch_result() -> tuple[str, Sent]:
    """Offer the value of the last cell, and say its ``repr``, which stands for a value that
    cannot be sent."""
    from IPython import get_ipython

    value = get_ipython().last_execution_result.result
    text = repr(value)
    try:
        return text, _offer(value)
    except TypeError:
        return text, _offer(text)


def _offer(value: Any) -> Sent:
    parts = arrays.take_apart(value)
    sent = Sent.of(parts)
    forget()
    _offered.update({index: parts.arrays[index] for index in sent.forms})
    return sent


def give(index: int, offset: int) -> np.ndarray[Any, Any]:
    """One piece of what is offered."""
    return piece(_offered[index], offset)


def forget() -> None:
    """Let go of what was expected or offered."""
    _expected.clear()
    _offered.clear()
