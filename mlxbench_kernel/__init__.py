"""mlxbench: a research workbench for MLX in Jupyter.

``%load_ext mlxbench_kernel`` gives any IPython kernel the magics ``%mlx_dist``, ``%mlx_graph``,
``%mlx_step``, ``%mlx_mem`` and ``%%mlx_generate``; the Python interface behind them is `Cluster`,
`capture` with what is beside it, `Stepper`, `MemoryView`, `FitPlan` and `LanguageModel`. Exports
are loaded on first use, so that ranks import no widget library.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "BenchError": "errors",
    "CellError": "errors",
    "CellTimeout": "errors",
    "Cluster": "cluster",
    "ClusterError": "errors",
    "CollectiveMismatch": "errors",
    "FitPlan": "memory.fit",
    "Link": "memory.fit",
    "Graph": "graph",
    "LanguageModel": "widgets.language_model",
    "MemoryView": "widgets.memory",
    "Stepper": "training",
    "StorageError": "errors",
    "UsageError": "errors",
    "capture": "graph",
    "compare": "widgets.comparisons",
    "cost": "graph",
    "diff": "graph",
    "first_nonfinite": "graph",
    "load": "graph",
    "predict": "graph",
    "profile": "graph",
    "to_dot": "graph",
    "to_mlxfn": "graph",
    "to_networkx": "graph",
    "to_rustworkx": "graph",
    "to_text": "graph",
    "traces": "graph",
    "watch_retracing": "graph",
    "load_ipython_extension": "kernel.extension",
    "unload_ipython_extension": "kernel.extension",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
