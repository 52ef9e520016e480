"""Sees every so many steps whether the parameters of all ranks are still equal."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training.replicas import compare, fingerprints, replicated_parameters
from mlxbench_kernel.training.settings import over


class ReplicaWatch:
    """Compares fingerprints of the parameters.

    Parameters
    ----------
    modules
        By name; sharded layers are left out.
    group
        The ranks.
    interval
        Steps from one comparison to the next; 0 for none.

    Raises
    ------
    UsageError
        The interval is no number of steps.

    Attributes
    ----------
    said : str
        The last difference, "" where there was none.
    """

    def __init__(
        self, modules: Mapping[str, Module], group: mx.distributed.Group, interval: int
    ) -> None:
        if not isinstance(interval, int) or interval < 0:
            raise UsageError(f"replicas takes a number of steps, or 0 for never, not {interval!r}")
        self._modules, self._group, self.interval = modules, group, interval
        self.said = ""

    def due(self, step: int) -> bool:
        """Whether they are compared after this step."""
        return self.interval > 0 and self._group.size() > 1 and step % self.interval == 0

    def differ(self) -> bool:
        """Compare them, on all ranks alike."""
        named = list(over(self._modules, replicated_parameters))
        own = fingerprints([array for _, array in named])
        gathered = mx.distributed.all_gather(own[None], group=self._group)
        found = compare([name for name, _ in named], np.array(gathered))
        self.said = "" if found is None else str(found)
        return found is not None
