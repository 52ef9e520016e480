"""Ranks that are only thought of: a group of any size, and collectives that nobody answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.core as mx


class Rank:
    """Stands for ``mx.distributed.Group`` where a model is split without a cluster.

    Parameters
    ----------
    rank, size
        As the group's.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        """The rank's number."""
        return self._rank

    def size(self) -> int:
        """How many ranks there are."""
        return self._size


@contextmanager
def imagined(rank: Rank, seen: list[str] | None = None) -> Iterator[None]:
    """In the block, in this thread, collectives give arrays of the right shapes at once.

    Their names are appended to `seen`, where that is given.

    They take about the memory of real ones: a sum takes over what it is given (MLX's
    ``AllReduce::eval_cpu``), a gather is as large as all its parts.
    """
    size = rank.size()
    instead: dict[str, Callable[..., Any]] = {
        "init": lambda *_, **__: rank,
        "all_sum": lambda x, **_: x,
        "all_max": lambda x, **_: x,
        "all_min": lambda x, **_: x,
        "send": lambda x, *_, **__: x,
        "recv_like": lambda x, *_, **__: mx.zeros(x.shape, x.dtype),
        "recv": lambda shape, dtype, *_, **__: mx.zeros(shape, dtype),
        "all_gather": lambda x, **_: mx.concatenate([x] * size) if x.ndim else mx.stack([x] * size),
        "sum_scatter": lambda x, **_: mx.split(x, size)[rank.rank()],
    }
    with ExitStack() as stack:
        for name, function in instead.items():
            original = getattr(mx.distributed, name, None)
            if original is not None:
                stack.callback(setattr, mx.distributed, name, original)
                setattr(mx.distributed, name, _here(original, _noted(name, function, seen)))
        yield


def _noted(name: str, function: Callable[..., Any], seen: list[str] | None) -> Callable[..., Any]:
    if seen is None or name == "init":
        return function

    def collective(*arguments: Any, **keywords: Any) -> Any:
        seen.append(name)
        return function(*arguments, **keywords)

    return collective


def _here(original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """`instead` in this thread, `original` in others."""
    thread = threading.get_ident()

    def collective(*arguments: Any, **keywords: Any) -> Any:
        called = instead if threading.get_ident() == thread else original
        return called(*arguments, **keywords)

    return collective
