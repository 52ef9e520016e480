"""Numbers and short texts that all ranks tell each other, so that they decide and fail alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel import errors


def to_numpy(array: mx.array) -> NDArray[Any]:
    """Evaluate an array, and copy it.

    NumPy alone would say nothing of a collective that was broken off: where an array raises instead
    of giving its buffer, NumPy asks it another way, and then reads whatever is there.
    """
    mx.eval(array)
    return np.array(array)


def gather_numbers(values: Sequence[float], group: mx.distributed.Group) -> NDArray[np.float64]:
    """Each rank's numbers, as float32 has them; called on all ranks alike. float64 [size, n]"""
    own = np.array(values, np.float32).reshape(1, -1)
    if group.size() == 1:
        return own.astype(np.float64)
    gathered = mx.distributed.all_gather(mx.array(own), group=group)
    return to_numpy(gathered).astype(np.float64)


def gather_texts(text: str, group: Any) -> list[str]:
    """What each rank has to say, by rank; called on all ranks alike.

    Parameters
    ----------
    text
        Of this rank.
    group : mlx.core.distributed.Group or None
        The ranks; None for this process alone.
    """
    if group is None or group.size() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = to_numpy(mx.distributed.all_gather(mx.array([mine.size]), group=group)).tolist()
    if not max(lengths):
        return [""] * len(lengths)
    padded = np.zeros((1, max(lengths)), np.uint8)
    padded[0, : mine.size] = mine
    rows = to_numpy(mx.distributed.all_gather(mx.array(padded), group=group))
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def agree(error: errors.BenchError | None, group: Any) -> None:
    """Raise on all ranks what one of them has met; called on all ranks alike.

    Parameters
    ----------
    error
        What this rank has met, None where all is well.
    group
        As of `gather_texts`.

    Raises
    ------
    BenchError
        That of the first rank that has met one, which its message then names.
    """
    if group is None or group.size() == 1:
        if error is not None:
            raise error
        return
    told = gather_texts("" if error is None else f"{type(error).__name__} {error}", group)
    for rank, text in enumerate(told):
        if text:
            kind, line = text.split(" ", 1)
            raise getattr(errors, kind)(f"rank {rank}: {line}")
