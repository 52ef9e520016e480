"""Checks what usually goes wrong before ranks come up: ``%mlx_dist doctor``.

`examine` looks at every host of a hostfile, or at this machine, and at the paths between
them; each `Finding` is one line that says what to type where something is bad. Nothing is
changed anywhere.
"""

from mlxbench_kernel.cluster.doctor.examine import examine
from mlxbench_kernel.cluster.doctor.finding import Finding

__all__ = ["Finding", "examine"]
