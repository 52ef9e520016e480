"""A rank joins the group and gets its namespace ready."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Load what `join` needs, while the reserved ports are still held."""
    import mlx.nn
    import mlx.optimizers  # noqa: F401

    from mlxbench_kernel import native

    native.load()


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its group, and how MLX finds the others.

    Attributes
    ----------
    rank, size
        This rank, and the number of ranks.
    backend
        As ``mx.distributed.init`` takes it.
    variables
        Environment variables that the backend reads.
    files
        JSON content by the name of the environment variable that holds the file's path.
    listens, calls
        Addresses (``"ip:port"``) at which this rank listens, and that it connects to.
    """

    rank: int
    size: int
    backend: str
    variables: dict[str, str]
    files: dict[str, Any]
    listens: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()

    @property
    def closes_ring(self) -> bool:
        """Whether it is the last rank of a ring, which calls the first."""
        return self.backend == "ring" and self.rank == self.size - 1


def join(place: Place, seed: int) -> dict[str, Any]:
    """Initialise ``mx.distributed`` and fill the namespace of the rank's shell.

    Ready afterwards: ``mx``, ``nn``, ``optim``, ``np``, ``protect``, ``rank``, ``size``,
    ``group``; the random states of MLX, NumPy and Python are seeded alike on all ranks.

    Parameters
    ----------
    place
        What the group is.
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

    from mlxbench_kernel import native
    from mlxbench_kernel.rank.collectives import GROUP
    from mlxbench_kernel.rank.protection import protect

    raw, sockets = _connect(place)
    if GROUP.group is not None:  # a stranger had got into the first ring
        GROUP.renew(raw, sockets)
    elif place.size > 1:
        GROUP.begin(raw, place.backend, native.load(), sockets)
    group = raw if GROUP.group is None else GROUP.group
    random.seed(seed)
    np.random.seed(seed % 2**32)
    mx.random.seed(seed)
    _offer(mx=mx, nn=nn, optim=optim, np=np, protect=protect)
    _offer(rank=place.rank, size=place.size, group=group)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": _device(),
        "mlx": importlib.metadata.version("mlx"),
        "native": "" if native.load() is not None else native.reason(),
    }


def rejoin(place: Place) -> None:
    """Have the lasting group of this process go on with new connections.

    Parameters
    ----------
    place
        What the group is now.
    """
    from mlxbench_kernel import native
    from mlxbench_kernel.rank.collectives import GROUP

    module = native.load()
    assert module is not None
    GROUP.release("the group is made anew")
    module.forget_backends()
    raw, sockets = _connect(place)
    GROUP.renew(raw, sockets)
    _offer(rank=place.rank, size=place.size, group=GROUP.group)


def _connect(place: Place) -> tuple[Any, list[int]]:
    """MLX's own group, with duplicates of its sockets."""
    from IPython import get_ipython

    from mlxbench_kernel import native
    from mlxbench_kernel.rank import ports
    from mlxbench_kernel.rank.collectives import GROUP
    from mlxbench_kernel.rank.files import write_text
    from mlxbench_kernel.rank.last_call import LastCall

    if place.size == 1:
        for name in ("MLX_RANK", *place.files):  # of a larger group: MLX would wait for it
            os.environ.pop(name, None)
        return GROUP.original("init")(), []
    module = native.load()
    ports.release()
    variables = dict(place.variables)
    with contextlib.ExitStack() as stack:
        own = get_ipython().kernel.parent.folder
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=own))
        files = dict(place.files)
        # Of several addresses MLX calls one after the other; without the module nothing else runs.
        if module is not None and place.closes_ring and len(place.listens) == 1:
            call = stack.enter_context(LastCall(place.listens[0], place.calls[0]))
            files["MLX_HOSTFILE"] = [[call.address], *files["MLX_HOSTFILE"][1:]]
        for name, content in files.items():
            path = Path(folder, f"{name}.json")
            write_text(path, json.dumps(content))
            variables[name] = str(path)
        os.environ.update(variables)
        before = ports.open_sockets()
        try:
            if module is not None:
                raw = module.init(place.backend)
            else:
                raw = GROUP.original("init")(strict=True, backend=place.backend)
        finally:
            ports.close_failed(before)
            for name in place.files:
                os.environ.pop(name)  # the file is gone: what a cell starts must not look for it
    if (raw.rank(), raw.size()) != (place.rank, place.size):
        raise RuntimeError(
            f"rank {place.rank} of {place.size} came up as rank {raw.rank()} of {raw.size()}"
        )
    return raw, ports.connections(place.listens, place.calls)


def _offer(**names: Any) -> None:
    """Put names into the namespace of the rank's shell, as things that the user did not make."""
    from IPython import get_ipython

    shell = get_ipython()
    shell.user_ns.update(names)
    shell.user_ns_hidden.update(names)


def _device() -> str:
    """The default device with its name, as ``gpu Apple M4 Max`` or ``cpu``."""
    import mlx.core as mx

    device = mx.default_device()
    name = mx.device_info(device).get("device_name", "")
    kind = "gpu" if device.type == mx.gpu else "cpu"
    return f"{kind} {name}".strip()
