"""How the ranks of each backend find one another: addresses, files and variables.

What each backend reads is documented by ``mlx/_distributed_utils/launch.py`` of MLX 0.32.4
(``launch_ring``, ``launch_nccl``, ``launch_jaccl``, ``launch_mpi``). Here the ports are not
fixed: each rank reserves free ones, and every path is tried before the group is made.
"""

from __future__ import annotations

import ctypes.util
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxbench_kernel.cluster.hostfile import Host, Hostfile
from mlxbench_kernel.errors import UsageError


@dataclass(frozen=True)
class RankSettings:
    """What one rank needs before ``mx.distributed.init``.

    Attributes
    ----------
    variables
        Environment variables that MLX reads in ``init``.
    files
        JSON content by the name of the variable that holds the path of the file.
    """

    variables: dict[str, str]
    files: dict[str, Any] = field(default_factory=dict)


def init_name(backend: str) -> str:
    """The name that ``mx.distributed.init`` knows the backend by."""
    return "jaccl" if backend == "jaccl-ring" else backend


def reservations(backend: str, hosts: Sequence[Host]) -> list[list[str]]:
    """For each rank the addresses of its host on which it must reserve a port."""
    if len(hosts) == 1 or backend == "mpi":
        return [[] for _ in hosts]
    if backend == "ring":
        return [[_ip(ip) for ip in host.ips] for host in hosts]
    return [[_ip(hosts[0].ips[0])], *([] for _ in hosts[1:])]


def targets(backend: str, addresses: Sequence[Sequence[str]]) -> list[list[str]]:
    """For each rank the reserved addresses (``"ip:port"``) that it will connect to.

    In the ring, rank r connects to rank r + 1 on each of its addresses
    (``mlx/distributed/ring/ring.cpp``); otherwise every rank connects to rank 0.
    """
    size = len(addresses)
    if size == 1 or backend == "mpi":
        return [[] for _ in addresses]
    if backend == "ring":
        return [list(addresses[(rank + 1) % size]) for rank in range(size)]
    return [[], *(list(addresses[0]) for _ in range(size - 1))]


def settings(
    backend: str, hosts: Sequence[Host], addresses: Sequence[Sequence[str]]
) -> list[RankSettings]:
    """What each rank is given, once the addresses are agreed.

    One rank alone gets nothing: with any ``MLX_`` variable set, MLX would wait for others.
    """
    size = len(hosts)
    if size == 1:
        return [RankSettings({})]
    if backend == "ring":
        hostfile = [list(own) for own in addresses]
        return [RankSettings({"MLX_RANK": str(r)}, {"MLX_HOSTFILE": hostfile}) for r in range(size)]
    if backend == "mpi":
        library = mpi_library()
        return [RankSettings({"MLX_MPI_LIBNAME": library} if library else {}) for _ in hosts]
    meeting = addresses[0][0]
    if backend == "nccl":
        return _nccl(hosts, meeting)
    variables = {"MLX_JACCL_COORDINATOR": meeting}
    if backend == "jaccl-ring":
        variables["MLX_JACCL_RING"] = "1"
    matrix = [[list(d) if isinstance(d, tuple) else d for d in host.rdma] for host in hosts]
    return [
        RankSettings({**variables, "MLX_RANK": str(rank)}, {"MLX_IBV_DEVICES": matrix})
        for rank in range(size)
    ]


def _nccl(hosts: Sequence[Host], meeting: str) -> list[RankSettings]:
    ip, port = meeting.rsplit(":", 1)
    common = {"MLX_WORLD_SIZE": str(len(hosts)), "NCCL_HOST_IP": ip, "NCCL_PORT": port}
    return [RankSettings({**common, "MLX_RANK": str(rank)}) for rank in range(len(hosts))]


def gpus(backend: str, hosts: Sequence[Host], visible: Sequence[str]) -> list[dict[str, str]]:
    """The variable that gives each rank of nccl a GPU of its own.

    It has to be there when the process starts: CUDA reads it once, as MLX is imported. A rank
    that saw all GPUs would compute on the first one and let NCCL use another, and its first
    collective would never end.

    Parameters
    ----------
    backend, hosts
        One host per rank.
    visible
        For each rank the GPUs that its host may use, as in ``CUDA_VISIBLE_DEVICES``; "" for all.
    """
    if backend != "nccl":
        return [{} for _ in hosts]
    on_host: Counter[str] = Counter()
    result = []
    for host, text in zip(hosts, visible, strict=True):
        place = on_host[host.ssh]
        devices = [device.strip() for device in text.split(",") if device.strip()]
        own = devices[place] if place < len(devices) else str(place)
        result.append({"CUDA_VISIBLE_DEVICES": own})
        on_host[host.ssh] += 1
    return result


def _ip(text: str) -> str:
    """The address without a port, which the hostfile may name and we agree anew."""
    return text.rsplit(":", 1)[0] if text.count(":") == 1 else text


def mpi_library() -> str:
    """``MLX_MPI_LIBNAME`` for this machine: "" where MLX's own guess works.

    MLX opens ``libmpi.so`` (``mlx/distributed/mpi/mpi.cpp``), which Debian ships only with the
    development package.
    """
    name = ctypes.util.find_library("mpi") or ""
    return name if name not in ("libmpi.so", "libmpi.dylib") else ""


def mpirun(hosts: Sequence[Host], variables: Sequence[str]) -> list[str]:
    """The ``mpirun`` command that starts one process per host, without the program.

    Parameters
    ----------
    hosts
        One per rank, in order.
    variables
        Names of environment variables that the ranks get.
    """
    command = ["mpirun", "-n", str(len(hosts)), "--oversubscribe"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    if not all(host.is_local for host in hosts):
        command += ["--host", ",".join(host.ssh for host in hosts)]
    for name in variables:
        command += ["-x", name]
    return command


def choose(
    requested: str,
    in_hostfile: str,
    hosts: Sequence[Host],
    available: Sequence[set[str]],
    gpus: Sequence[int] | None = None,
) -> str:
    """The backend to use.

    Parameters
    ----------
    requested
        What the user asked for; "" or "any" leaves it to the hostfile, and then to what the
        hosts have: jaccl (or jaccl-ring) where all of them do and the cables suffice, nccl
        with a GPU per rank, else ring.
    in_hostfile
        The hostfile's backend, or "".
    hosts, available
        One per rank; `available` has the backends that MLX has on that host.
    gpus
        One per rank: the number of NVIDIA GPUs of that host; None where it is not known, and
        then as many as are needed are taken to be there.

    Raises
    ------
    UsageError
        The backend that was asked for is not available on a host, or nccl would put two
        ranks on one GPU.
    """
    crowded = _without_gpu(hosts, gpus)
    wanted = requested if requested not in ("", "any") else in_hostfile
    if wanted in ("", "any"):
        if all(
            "jaccl" in there and host.rdma for host, there in zip(hosts, available, strict=True)
        ):
            for name in ("jaccl", "jaccl-ring"):
                if _ready(name, hosts):
                    return name
        return "nccl" if all("nccl" in there for there in available) and not crowded else "ring"
    for host, there in zip(hosts, available, strict=True):
        if init_name(wanted) not in there and len(hosts) > 1:
            raise UsageError(
                f"backend {wanted} is not available on {host.ssh}; there: "
                f"{', '.join(sorted(there)) or 'none'}"
            )
    if wanted == "nccl" and len(hosts) > 1 and crowded:
        raise UsageError(f"backend nccl needs a GPU for each rank, but {crowded}; use fewer ranks")
    return wanted


def _ready(backend: str, hosts: Sequence[Host]) -> bool:
    """Whether the hosts name all that `backend` needs."""
    try:
        Hostfile(tuple(hosts)).check(backend)
    except UsageError:
        return False
    return True


def _without_gpu(hosts: Sequence[Host], gpus: Sequence[int] | None) -> str:
    """Which host has more ranks than GPUs, in words; "" where none has."""
    if gpus is None:
        return ""
    ranks = Counter(host.ssh for host in hosts)
    for host, count in zip(hosts, gpus, strict=True):
        if ranks[host.ssh] > count:
            return f"{host.ssh} has {count} GPUs for {ranks[host.ssh]} ranks"
    return ""
