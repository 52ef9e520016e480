"""Training that can be stepped: forwards, back, and to another branch, on all ranks alike.

A plain library: it works in a script under ``mlx.launch`` as in a notebook's ranks. `Stepper` is
what others use; `current` gives the one that was made last.
"""

from mlxbench_kernel.training.conditions import BREAKPOINTS, Condition
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.stepper import Stepper, current
from mlxbench_kernel.training.taken import Stop

__all__ = [
    "BREAKPOINTS",
    "Condition",
    "History",
    "ParameterHistory",
    "Stepper",
    "Stop",
    "current",
]
