"""A rank joins the group and gets its namespace ready."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Load what `join` needs, while the reserved ports are still held."""
    import mlx.nn
    import mlx.optimizers  # noqa: F401

    from mlxbench_kernel import native

    native.load()


def join(
    rank: int,
    size: int,
    backend: str,
    variables: dict[str, str],
    files: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Initialise ``mx.distributed`` and fill the namespace of the rank's shell.

    Ready afterwards: ``mx``, ``nn``, ``optim``, ``np``, ``rank``, ``size``, ``group``; the
    random states of MLX, NumPy and Python are seeded alike on all ranks.

    Parameters
    ----------
    rank, size
        This rank, and the number of ranks.
    backend
        As ``mx.distributed.init`` takes it.
    variables
        Environment variables that the backend reads.
    files
        JSON content by the name of the environment variable that holds the file's path.
    seed
        Random seed.

    Returns
    -------
    dict
        ``host``, ``pid``, ``device``, ``mlx`` (version), ``native`` (why the compiled module
        is not used, "" when it is).
    """
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    from IPython import get_ipython

    from mlxbench_kernel import native
    from mlxbench_kernel.rank.files import write_text

    module = native.load()
    with tempfile.TemporaryDirectory(dir=get_ipython().kernel.parent.folder) as folder:
        for name, content in files.items():
            path = Path(folder, f"{name}.json")
            write_text(path, json.dumps(content))
            variables = {**variables, name: str(path)}
        os.environ.update(variables)
        if size == 1:
            group = mx.distributed.init()
        elif module is not None:
            group = module.init(backend)
        else:
            group = mx.distributed.init(strict=True, backend=backend)
        for name in files:
            os.environ.pop(name)  # the file is gone: what a cell starts must not look for it
    if (group.rank(), group.size()) != (rank, size):
        raise RuntimeError(
            f"rank {rank} of {size} came up as rank {group.rank()} of {group.size()}"
        )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    mx.random.seed(seed)
    namespace = {
        "mx": mx, "nn": nn, "optim": optim, "np": np, "rank": rank, "size": size, "group": group,
    }  # fmt: skip
    shell = get_ipython()
    shell.user_ns.update(namespace)
    shell.user_ns_hidden.update(namespace)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": _device(),
        "mlx": importlib.metadata.version("mlx"),
        "native": "" if module is not None else native.reason(),
    }


def _device() -> str:
    """The default device with its name, as ``gpu Apple M4 Max`` or ``cpu``."""
    import mlx.core as mx

    device = mx.default_device()
    name = mx.device_info(device).get("device_name", "")
    kind = "gpu" if device.type == mx.gpu else "cpu"
    return f"{kind} {name}".strip()
