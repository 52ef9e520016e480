"""What a person sees of the cluster: tables of ranks and of clusters, progress, the mode marker.

Everything here draws what it is given and asks nothing of the ranks. Each object has a text
form for terminals and an HTML form for notebooks that takes its colours from the page, so that
it reads well on light and dark themes.
"""

from mlxbench_kernel.widgets.clusters import ClustersTable
from mlxbench_kernel.widgets.collectives import CollectivesTable
from mlxbench_kernel.widgets.marker import RanksMarker
from mlxbench_kernel.widgets.progress import ProgressBar
from mlxbench_kernel.widgets.ranks import RanksTable

__all__ = ["ClustersTable", "CollectivesTable", "ProgressBar", "RanksMarker", "RanksTable"]
