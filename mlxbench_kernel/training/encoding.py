"""What was measured as it travels on the control channel, in JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mlxbench_kernel.training.history import Row, Sample


def encode(rows: Iterable[Row]) -> list[Any]:
    """Rows in JSON, which has no NaN: non-finite numbers are "nan", "inf" and "-inf"."""
    return [
        [branch, {name: x if math.isfinite(x) else str(x) for name, x in record.items()}]
        for branch, record in rows
    ]


def decode(encoded: Iterable[Any]) -> list[Row]:
    """The rows that `encode` was given."""
    return [
        (branch, {name: float(value) for name, value in record.items()})
        for branch, record in encoded
    ]


def encode_samples(samples: Iterable[Sample]) -> list[Any]:
    """Samples of parameters in JSON: the bytes of little-endian float32 in base64."""
    return [
        [
            branch,
            step,
            {name: base64.b64encode(x.astype("<f4").tobytes()).decode() for name, x in own.items()},
        ]
        for branch, step, own in samples
    ]


def decode_samples(encoded: Iterable[Any]) -> list[Sample]:
    """The samples that `encode_samples` was given."""
    return [
        (
            branch,
            step,
            {
                name: np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
                for name, text in own.items()
            },
        )
        for branch, step, own in encoded
    ]
