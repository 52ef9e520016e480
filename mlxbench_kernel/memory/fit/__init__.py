"""Will it fit? What a model takes on each host, found before anything of it is loaded."""

from mlxbench_kernel.memory.fit.pace import Link
from mlxbench_kernel.memory.fit.plan import FitPlan, Row

__all__ = ["FitPlan", "Link", "Row"]
