"""The Jupyter kernel "MLX Bench": IPython's kernel with the magics of mlxbench loaded."""

from __future__ import annotations

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from traitlets import Dict, List, Unicode, default

from mlxbench_kernel import __version__


class BenchKernel(IPythonKernel):
    """IPython's kernel, which says what it is."""

    implementation = "mlxbench"
    implementation_version = __version__

    @property
    def banner(self) -> str:  # type: ignore[override]  # as in IPythonKernel itself
        """First lines of a console: what this is, and what to type."""
        first = f"MLX Bench {__version__} · %mlx_dist up -n 2 starts two ranks · %mlx_dist help"
        return f"{first}\n{super().banner}"


class BenchKernelApp(IPKernelApp):
    """Application that runs `BenchKernel` (``python -m mlxbench_kernel.kernel``).

    It keeps IPython's name, so that the user's ``ipython_kernel_config.py`` and profile hold.
    """

    default_extensions = List(Unicode(), ["storemagic", "mlxbench_kernel"])

    # "install" would install a kernelspec of plain IPython; `spec` installs ours.
    subcommands = Dict()

    @default("kernel_class")
    def _bench_kernel(self) -> type[BenchKernel]:
        return BenchKernel
