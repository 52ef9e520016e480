"""Measures what ways to share out a model depend on: reading weights, and a collective."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxbench_kernel.memory.fit.source import text_config

WIDTH = 4096  # of a hidden state, where a config does not say
WEIGHTS = 32 * 1024 * 1024  # elements: more than caches of a processor hold
SUMS = 16  # in one graph, as the layers of a model have them
LEAST_SECONDS = 0.02  # that one measurement takes, so that what starts it does not count
TURNS = 5  # the quickest counts, as what disturbs only adds …
TURNS_SECONDS = 0.1  # … or as many as begin in this time


def measure(config: dict[str, Any], group: mx.distributed.Group) -> dict[str, float]:
    """Measure this rank's memory and link; on all ranks of a group at once.

    Parameters
    ----------
    config
        Of the model: as wide as its hidden state, and with weights of its kind.
    group
        The ranks.

    Returns
    -------
    dict
        ``alone`` and ``together``, bytes of weights a second that this rank gets through while
        others wait and while all do; ``collective``, seconds of a sum over the ranks. See
        `memory.fit.Link`.
    """
    config = text_config(config)
    width = config.get("hidden_size")
    width = width if isinstance(width, int) and width > 0 else WIDTH
    width = -(-width // 128) * 128  # what groups of a quantization divide
    dtype = getattr(mx, str(config.get("torch_dtype") or config.get("dtype")), mx.bfloat16)
    weights = _weights(config, width, dtype)
    nbytes = sum(array.nbytes for array in weights)
    state = mx.ones((1, width), dtype)
    mx.eval(state, weights)

    def reading(times: int) -> mx.array:
        found = state
        for _ in range(times):
            found = state + _through(found, weights, config)[:, :1]
        return found

    def summing(times: int) -> mx.array:
        found = state
        for _ in range(times):
            found = mx.distributed.all_sum(found, group=group) / group.size()
        return found

    alone = 0.0
    for rank in range(group.size()):
        mx.eval(summing(1))
        if rank == group.rank():
            alone = nbytes / _seconds(reading)
    mx.eval(summing(1))
    together = nbytes / _seconds(reading)
    # All ranks alike, whatever each has measured.
    collective = min(_once(summing, SUMS) for _ in range(TURNS))
    return {"alone": alone, "together": together, "collective": collective}


def _weights(config: dict[str, Any], width: int, dtype: mx.Dtype) -> tuple[mx.array, ...]:
    """A matrix as the model's are, or the parts of a quantized one."""
    matrix = mx.ones((WEIGHTS // width, width), dtype)
    how = _quantization(config)
    return tuple(mx.quantize(matrix, **how)) if how else (matrix,)


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("quantization") or {}
    return {name: found[name] for name in ("group_size", "bits", "mode") if name in found}


def _through(state: mx.array, weights: tuple[mx.array, ...], config: dict[str, Any]) -> mx.array:
    if len(weights) == 1:
        return state @ weights[0].T
    multiply: Any = mx.quantized_matmul
    found: mx.array = multiply(state, *weights, transpose=True, **_quantization(config))
    return found


def _seconds(run: Callable[[int], mx.array]) -> float:
    """How long it takes once, among so many in one graph that it can be measured."""
    times = max(1, round(LEAST_SECONDS / _once(run, 1)))
    until = time.perf_counter() + TURNS_SECONDS
    took = [_once(run, times)]
    while len(took) < TURNS and time.perf_counter() < until:
        took.append(_once(run, times))
    return min(took)


def _once(run: Callable[[int], mx.array], times: int) -> float:
    began = time.perf_counter()
    mx.eval(run(times))
    return (time.perf_counter() - began) / times
