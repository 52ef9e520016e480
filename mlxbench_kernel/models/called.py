"""Notes what modules and attention are given and give while a model runs; nothing stays changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module


@dataclass(frozen=True)
class Attended:
    """A call of ``mx.fast.scaled_dot_product_attention``.

    Attributes
    ----------
    queries : array [batch, heads, L, D]
    keys : array [batch, KV heads, S, D]
    scale : float
        Of the scores.
    mask : array, "causal" or None
        Of booleans (True is seen), or added to the scores.
    sinks : array [heads] or None
        A score of each head that takes a part of the probability and stands for no position.
    """

    queries: mx.array
    keys: mx.array
    scale: float
    mask: mx.array | str | None = None
    sinks: mx.array | None = None


@contextmanager
def calls_of(module: Module, around: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Have something done around each call of a module in the block.

    Python looks for ``__call__`` in the class, so it is the class that is changed meanwhile.

    Parameters
    ----------
    module
        Of its class no other module is noticed.
    around
        Is given the call, and gives its result.
    """
    kind: Any = type(module)
    own = vars(kind).get("__call__")
    original = kind.__call__

    @functools.wraps(original)
    def called(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if self is not module:
            return original(self, *arguments, **keywords)
        return around(lambda: original(self, *arguments, **keywords))

    kind.__call__ = called
    try:
        yield
    finally:
        if own is None:
            del kind.__call__
        else:
            kind.__call__ = own


@contextmanager
def outputs_of(module: Module) -> Iterator[list[Any]]:
    """Note what a module gives, each time that it is called in the block."""
    found: list[Any] = []

    def around(call: Callable[[], Any]) -> Any:
        found.append(call())
        return found[-1]

    with calls_of(module, around):
        yield found


@contextmanager
def attention_in(module: Module) -> Iterator[list[Attended]]:
    """Note the attention that is computed while a module is called in the block.

    mlx-lm's models look ``mx.fast.scaled_dot_product_attention`` up when they call it
    (``mlx_lm/models/base.py`` of 0.32.2).
    """
    found: list[Attended] = []
    inside = [False]
    original = mx.fast.scaled_dot_product_attention

    def around(call: Callable[[], Any]) -> Any:
        inside[0] = True
        try:
            return call()
        finally:
            inside[0] = False

    @functools.wraps(original)
    def attend(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        if inside[0]:
            given = {name: options.get(name) for name in ("mask", "sinks")}
            found.append(Attended(q, k, options["scale"], **given))
        return original(q, k, v, **options)

    fast: Any = mx.fast
    fast.scaled_dot_product_attention = attend
    try:
        with calls_of(module, around):
            yield found
    finally:
        fast.scaled_dot_product_attention = original
