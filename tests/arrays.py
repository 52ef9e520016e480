"""Arrays that tests of memory make, and a thread that makes some meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx


def ones(count: int) -> mx.array:
    """Evaluated, of so many bytes in a buffer of its own."""
    array = mx.zeros((count,), dtype=mx.uint8) + 1
    mx.eval(array)
    return array


@contextmanager
def computing(variables: dict[str, Any]) -> Iterator[None]:
    """A thread that evaluates arrays, and puts them among variables and takes them out."""
    stop = threading.Event()

    def compute() -> None:
        with mx.stream(mx.cpu):
            step = 0
            while not stop.is_set():
                x = mx.random.normal((64, 64))
                mx.async_eval(x, x @ x)
                variables[f"x{step % 50}"] = [x, x @ x]
                variables.pop(f"x{(step + 7) % 50}", None)
                mx.eval(x * 2)
                step += 1

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
