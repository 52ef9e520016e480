"""The random state of a rank that was started anew, from that of one that went on.

Each draw replaces the key of ``mx.random`` by the first half of its split (``KeySequence::next``
in mlx/random.cpp). Ranks that take the same steps draw equally often, so where each began with a
key of its own, the number of draws of one leads to the key of another.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

MOST = 50_000  # draws that are looked through; each takes 12 to 50 microseconds
_AT_ONCE = 1024


def key_of(first: list[int], others_first: list[int], others_now: list[int]) -> list[int] | None:
    """The key that a rank has after as many draws as another one has made.

    Parameters
    ----------
    first, others_first
        The two halves of each rank's key at the beginning.
    others_now
        Those of the other one now.

    Returns
    -------
    list of int or None
        None where that key was not reached by drawing alone, or by more than `MOST`.
    """
    if first == others_first:
        return others_now
    if others_now == others_first:
        return first
    made = 0
    for keys in _after(others_first):
        found = np.flatnonzero((keys == np.array(others_now, np.uint32)).all(axis=1))
        if len(found):
            made += int(found[0])
            break
        made += len(keys)
        if made >= MOST:
            return None
    for keys in _after(first):
        if made < len(keys):
            key: list[int] = keys[made].tolist()
            return key
        made -= len(keys)
    return None


def _after(first: list[int]) -> Iterator[NDArray[np.uint32]]:
    """The keys after each draw, uint32 [some, 2] at a time, without end."""
    key = mx.array(first, mx.uint32)
    while True:
        keys = []
        for _ in range(_AT_ONCE):
            key = mx.random.split(key)[0]
            keys.append(key)
        rows = np.array(mx.stack(keys))
        key = mx.array(rows[-1])
        yield rows
