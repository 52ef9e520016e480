"""What a rank needs, and the prediction of the peak that it follows from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxbench_kernel import native
from mlxbench_kernel.graph.changes import kept
from mlxbench_kernel.graph.cutting import cut
from mlxbench_kernel.graph.forgetting import forgetting
from mlxbench_kernel.graph.guard import guarded
from mlxbench_kernel.graph.peak import predict
from mlxbench_kernel.graph.reader import read
from mlxbench_kernel.interrupts import shielded
from mlxbench_kernel.memory.fit.collectives import Rank, imagined


@dataclass(frozen=True)
class Need:
    """Bytes that a rank needs at the worst moment; None where that is not known.

    Attributes
    ----------
    parameters
        Of the model, with arrays beside its parameters, as tables of positions.
    cache
        Keys and values, or other states, of the whole context.
    gradients, optimizer, snapshots
        Of training; snapshots are earlier states of what it changes.
    activations
        The rest of the predicted peak: what is computed with at the worst moment.
    """

    parameters: int
    cache: int | None = 0
    gradients: int = 0
    optimizer: int = 0
    snapshots: int = 0
    activations: int | None = 0

    @property
    def total(self) -> int:
        """The sum of what is known."""
        return (
            self.parameters
            + (self.cache or 0)
            + self.gradients
            + self.optimizer
            + self.snapshots
            + (self.activations or 0)
        )


class Unknown(Exception):
    """A model cannot be called as language models are; why, in one line."""


@contextmanager
def thinking(rank: Rank, seen: list[str] | None = None) -> Iterator[None]:
    """Models are called in the block as if on that rank: nothing is evaluated, or stays changed.

    The names of collectives that they call are appended to `seen`, where that is given.

    Raises
    ------
    Unknown
        The model raised.
    """
    try:
        with shielded(kept(), guarded(), forgetting(), imagined(rank, seen)):
            yield
    except Unknown:
        raise
    except Exception as error:
        line = str(error).strip().splitlines() or [""]
        raise Unknown(line[0] or type(error).__name__) from error


def can_predict() -> bool:
    """Whether graphs have shapes here: the native module is there."""
    return native.load() is not None


def arrays(*trees: Any) -> list[mx.array]:
    """The arrays of trees."""
    return [array for _, array in _flat(trees) if isinstance(array, mx.array)]


def _flat(trees: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    found: Any = tree_flatten(list(trees))
    return list(found)


def peak(outputs: list[mx.array], given: Mapping[int, bool]) -> int:
    """Bytes that evaluating arrays takes at most beside given ones.

    Parameters
    ----------
    outputs
        Lazy arrays; nothing but this list and what stays holds them.
    given
        As for `cut`.
    """
    return predict(cut(read(outputs), given)).peak
