"""The entry "MLX Bench" in Jupyter's launcher: the kernelspec, and where it is installed.

``pip install`` puts the folder ``resources`` into the environment as data files, which is
all that a JupyterLab in the same environment needs. One that lives in another environment
finds the kernel after ``python -m mlxbench_kernel.kernel.spec``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager

NAME = "mlxbench"
RESOURCES = Path(__file__).with_name("resources")


def install() -> Path:
    """Make the kernel known to every Jupyter of this user, and return its folder.

    The entry starts the Python that runs this function. The one of ``pip install`` names
    only ``python``, which Jupyter takes to be the Python it runs on itself
    (``KernelManager.format_kernel_cmd``, jupyter_client 8.10).
    """
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / NAME
        shutil.copytree(RESOURCES, staged)
        spec = json.loads((RESOURCES / "kernel.json").read_text())
        spec["argv"][0] = sys.executable
        (staged / "kernel.json").write_text(json.dumps(spec, indent=2))
        installed = KernelSpecManager().install_kernel_spec(str(staged), NAME, user=True)
    return Path(installed)


if __name__ == "__main__":
    print(f"The kernel MLX Bench is in {install()}")
