"""The doctor's round: this machine, each host, and the paths between them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from mlxbench_kernel.cluster import hosts
from mlxbench_kernel.cluster.doctor import one_host, paths
from mlxbench_kernel.cluster.doctor.finding import Finding
from mlxbench_kernel.cluster.hostfile import Hostfile
from mlxbench_kernel.cluster.report import HostReport
from mlxbench_kernel.errors import UsageError

LOOK_SECONDS = 20.0


def examine(hostfile: str | None = None, python: str | None = None) -> Iterator[Finding]:
    """Look for what usually goes wrong; changes nothing.

    Parameters
    ----------
    hostfile
        Path of a hostfile; without one, this machine alone.
    python
        Python on the hosts; by default the path of this one.

    Yields
    ------
    Finding
        As soon as it is known.

    Raises
    ------
    UsageError
        The hostfile cannot be read.
    """
    file = Hostfile.read(hostfile) if hostfile is not None else Hostfile.local(1)
    yield _kernelspec()
    complete = True
    if hostfile is not None:
        finding = _hostfile(file)
        complete = finding.good is not False
        yield finding
    reports: dict[str, HostReport] = {}
    for name, report in hosts.look(file.hosts, python, LOOK_SECONDS, details=True):
        if isinstance(report, HostReport):
            reports[name] = report
            own = [host for host in file.hosts if host.ssh == name]
            yield from one_host.findings(report, own, file.backend)
        else:
            yield Finding(name, "ssh", False, report.cause, report.fix)
    if hostfile is not None and len({host.ssh for host in file.hosts}) > 1:
        yield _encryption(file.backend)
    yield from paths.back(reports)
    if complete:
        yield from paths.between(file.hosts, reports, file.backend)


def _hostfile(file: Hostfile) -> Finding:
    backend = file.backend if file.backend not in ("", "any") else "ring"
    try:
        file.check(backend)
    except UsageError as error:
        return Finding("this machine", "hostfile", False, str(error), "mlx.distributed_config")
    count = len(file.hosts)
    return Finding("this machine", "hostfile", True, f"{file.path}: {count} ranks for {backend}")


def _encryption(backend: str) -> Finding:
    named = backend if backend not in ("", "any") else "ring, nccl or mpi"
    detail = (
        f"cells and variables travel encrypted; what ranks exchange over {named} is not encrypted: "
        "anyone on that network can read and change it"
    )
    return Finding("this machine", "encryption", None, detail)


def _kernelspec() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    found = KernelSpecManager().find_kernel_specs().get("mlxbench")
    if found:
        return Finding("this machine", "kernel", True, f"MLX Bench is in {found}")
    fix = f"{sys.executable} -m mlxbench_kernel.kernel.spec"
    return Finding("this machine", "kernel", False, "MLX Bench is not in Jupyter's launcher", fix)
