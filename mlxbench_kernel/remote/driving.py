"""Who drives the stepper of a cluster's ranks: one for all, be it a magic or a model's tuning."""

from __future__ import annotations

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.remote.stepping import Stepping


def stepping_of(cluster: Cluster) -> Stepping:
    """What drives the stepper of a cluster's ranks: one for all who do, so that none waits for
    another's run as if for a stranger's.

    Raises
    ------
    UsageError
        There is no stepper on a rank.
    """
    found = _driving(cluster)
    if found is None:
        return Stepping(cluster)
    found.look()
    return found


def pause(cluster: Cluster) -> None:
    """Pause a run that is driven from here, if there is one; it does not go on by itself."""
    if (found := _driving(cluster)) is not None:
        found.pause()


def _driving(cluster: Cluster) -> Stepping | None:
    """The one that was made last for a cluster, which its cells wait for."""
    found = getattr(cluster.background.stepper, "__self__", None)
    return found if isinstance(found, Stepping) and not found.closed else None
