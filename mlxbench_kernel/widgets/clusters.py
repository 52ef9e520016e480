"""The list of running clusters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxbench_kernel.widgets.table import Table

if TYPE_CHECKING:
    from mlxbench_kernel.cluster import ClusterInfo


class ClustersTable(Table):
    """One line per cluster of this user on this machine.

    Parameters
    ----------
    clusters
        What is known of each.
    """

    def __init__(self, clusters: Sequence[ClusterInfo]) -> None:
        rows = [
            [each.id, str(each.size), each.backend, each.folder, _holder(each)] for each in clusters
        ]
        free = [each.id for each in clusters if not each.owner_alive]
        caption = f"type %mlx_dist attach {free[0]}" if free else "each is held by its notebook"
        super().__init__(["cluster", "ranks", "backend", "folder", "held by"], rows, caption)


def _holder(info: ClusterInfo) -> str:
    if not info.owner_alive:
        return "nobody"
    if info.owner == os.getpid():
        return "this notebook"
    return f"another notebook (process {info.owner})"
