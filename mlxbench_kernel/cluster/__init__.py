"""Starts, holds and ends the ranks: hostfile, launchers, rendezvous, cells, data.

`Cluster` is what a notebook holds; it is built on ipyparallel's own controller, engines and
client, and on MLX's backends.
"""

from mlxbench_kernel.cluster.cells import CellResult
from mlxbench_kernel.cluster.cluster import Cluster
from mlxbench_kernel.cluster.history import PastCell
from mlxbench_kernel.cluster.hostfile import BACKENDS, Host, Hostfile
from mlxbench_kernel.cluster.sink import CellOutputSink
from mlxbench_kernel.cluster.state import ClusterInfo, RankInfo
from mlxbench_kernel.rank.requests import OWN_CELL

__all__ = [
    "BACKENDS", "OWN_CELL", "CellOutputSink", "CellResult", "Cluster", "ClusterInfo", "Host",
    "Hostfile", "PastCell", "RankInfo",
]  # fmt: skip
