"""Lazy graphs: read without being evaluated, named, folded, costed, compared.

A plain library: it imports neither Jupyter nor ipyparallel, and works in any MLX program.
"""

from mlxbench_kernel.graph.capture import Captured, capture, captured, captured_call
from mlxbench_kernel.graph.expression import capture_expression
from mlxbench_kernel.graph.model import Graph, Phase, Scope, Status
from mlxbench_kernel.graph.reader import read

__all__ = [
    "Captured",
    "Graph",
    "Phase",
    "Scope",
    "Status",
    "capture",
    "capture_expression",
    "captured",
    "captured_call",
    "read",
]
