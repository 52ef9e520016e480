"""Sees every so many steps whether the parameters of all ranks are still equal."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training.exchange import to_numpy
from mlxbench_kernel.training.replicas import compare, fingerprints, replicated_parameters
from mlxbench_kernel.training.settings import over

USUAL = 50  # steps from one comparison to the next
MOST = 1000
SHARE = 0.001  # of the time of training that comparing may take, unless the user says how often


class ReplicaWatch:
    """Compares fingerprints of the parameters.

    Parameters
    ----------
    modules
        By name; sharded layers are left out.
    group
        The ranks.
    interval
        Steps from one comparison to the next; 0 for none, and None for `USUAL`, or as many more as
        keep it from taking more than `SHARE` of the time of training.

    Raises
    ------
    UsageError
        The interval is no number of steps.

    Attributes
    ----------
    interval : int
        Steps from one comparison to the next, as it is now.
    said : str
        The last difference, "" where there was none.
    """

    def __init__(
        self,
        modules: Mapping[str, Module],
        group: mx.distributed.Group,
        interval: int | None,
    ) -> None:
        if interval is not None and (not isinstance(interval, int) or interval < 0):
            raise UsageError(f"replicas takes a number of steps, or 0 for never, not {interval!r}")
        self._modules, self._group = modules, group
        self.interval = USUAL if interval is None else interval
        self._adapts = interval is None
        self._took: deque[float] = deque(maxlen=5)
        self.said = ""

    def note(self, comparing: float, step: float) -> None:
        """Take note what comparing took, and what a step takes.

        Parameters
        ----------
        comparing, step
            Seconds on the slowest rank; of the first 0 where it is not known.
        """
        if self._adapts and comparing:
            self._took.append(comparing)
            wanted = max(round(min(self._took) / (SHARE * step)), USUAL)
            self.interval = min(wanted, 2 * self.interval, MOST)  # one slow one is no reason

    def agree(self, interval: int) -> None:
        """Compare every so many steps for now, as all ranks do: one may have been started anew."""
        self.interval = interval
        self._took.clear()

    def due(self, step: int) -> bool:
        """Whether they are compared after this step."""
        return self.interval > 0 and self._group.size() > 1 and step % self.interval == 0

    def differ(self) -> bool:
        """Compare them, on all ranks alike."""
        named = list(over(self._modules, replicated_parameters))
        own = fingerprints([array for _, array in named])
        gathered = mx.distributed.all_gather(own[None], group=self._group)
        found = compare([name for name, _ in named], to_numpy(gathered))
        self.said = "" if found is None else str(found)
        return found is not None
