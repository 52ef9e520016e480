"""Lazy graphs: read without being evaluated, named, folded, costed, compared.

A plain library: it imports neither Jupyter nor ipyparallel, and works in any MLX program.
"""

from mlxbench_kernel.graph.agreement import agreement
from mlxbench_kernel.graph.capture import Captured, capture, captured, captured_call
from mlxbench_kernel.graph.cost import Cost, cost
from mlxbench_kernel.graph.diff import GraphDiff, diff
from mlxbench_kernel.graph.explorer import Explorer
from mlxbench_kernel.graph.exported import Exported
from mlxbench_kernel.graph.exports import to_dot, to_networkx, to_rustworkx, to_text
from mlxbench_kernel.graph.expression import capture_expression
from mlxbench_kernel.graph.in_step import out_of_step
from mlxbench_kernel.graph.mlxfn import to_mlxfn
from mlxbench_kernel.graph.model import Graph, Phase, Scope, Status
from mlxbench_kernel.graph.nonfinite import NonFinite, first_nonfinite
from mlxbench_kernel.graph.origin import RanksNonFinite, origins
from mlxbench_kernel.graph.peak import Prediction, predict
from mlxbench_kernel.graph.profile import Profile, profile
from mlxbench_kernel.graph.reader import read
from mlxbench_kernel.graph.retracing import Watch, traces, watch_retracing
from mlxbench_kernel.graph.saved import load, save
from mlxbench_kernel.graph.traces import Trace, Traces

__all__ = [
    "Captured",
    "Cost",
    "Explorer",
    "Exported",
    "Graph",
    "GraphDiff",
    "NonFinite",
    "Phase",
    "Prediction",
    "Profile",
    "RanksNonFinite",
    "Scope",
    "Status",
    "Trace",
    "Traces",
    "Watch",
    "agreement",
    "capture",
    "capture_expression",
    "captured",
    "captured_call",
    "cost",
    "diff",
    "first_nonfinite",
    "load",
    "origins",
    "out_of_step",
    "predict",
    "profile",
    "read",
    "save",
    "to_dot",
    "to_mlxfn",
    "to_networkx",
    "to_rustworkx",
    "to_text",
    "traces",
    "watch_retracing",
]
