"""Random states of a rank in a checkpoint: ``mx.random``, ``random`` and ``numpy.random``."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.rescue import RANDOM

PYTHON = "random.state"
NUMPY = "numpy.random.state"
NAMES = (RANDOM, PYTHON, NUMPY)


def states() -> dict[str, Any]:
    """Those of now, for JSON."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        RANDOM: np.array(frozen.random_key()).tolist(),
        PYTHON: random.getstate(),
        NUMPY: [kind, np.array(keys).tolist(), *rest],
    }


def states_of(rank: int, saved: list[dict[str, Any]]) -> dict[str, Any]:
    """What a rank goes on with.

    Parameters
    ----------
    rank
        One that was not there then gets a key of its own; the others' states stay as they are.
    saved
        From `states`, by rank.
    """
    if rank >= len(saved):
        key = mx.random.split(mx.array(saved[0][RANDOM], mx.uint32), rank + 1)[rank]
        mx.eval(key)
        return {RANDOM: key}
    version, numbers, gauss = saved[rank][PYTHON]
    kind, keys, *rest = saved[rank][NUMPY]
    return {
        RANDOM: mx.array(saved[rank][RANDOM], mx.uint32),
        PYTHON: (version, tuple(numbers), gauss),
        NUMPY: (kind, np.array(keys, np.uint32), *rest),
    }


def go_on(loaded: Mapping[str, Any]) -> None:
    """Set those that are there, under the names of `states_of`."""
    if RANDOM in loaded:
        frozen.seed(loaded[RANDOM])
    if PYTHON in loaded:
        random.setstate(loaded[PYTHON])
    if NUMPY in loaded:
        np.random.set_state(loaded[NUMPY])
