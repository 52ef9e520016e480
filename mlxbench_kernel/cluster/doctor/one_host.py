"""What the doctor finds on one host, from its report alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlxbench_kernel.cluster.doctor import macos
from mlxbench_kernel.cluster.doctor.finding import Finding
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.cluster.rendezvous import init_name
from mlxbench_kernel.cluster.report import HostReport, unfit
from mlxbench_kernel.memory import format_bytes

LEAST_FREE = 0.1  # of the pool; below, the first model pushes other programs out


def findings(report: HostReport, ranks: Sequence[Host], backend: str) -> Iterator[Finding]:
    """Everything that can be said of one host.

    Parameters
    ----------
    report
        What it said, with details.
    ranks
        The hostfile's entries for it, one per rank.
    backend
        That ranks shall use; "" or "any" where it is left open.
    """
    name = report.name
    if not report.local:
        yield Finding(name, "ssh", True, f"answers as {report.hostname}, without a password")
    yield _packages(report)
    if not report.versions["mlx"] or report.mlx_error:
        return
    yield _backends(report, backend, len(ranks))
    device = report.details.get("device") or "unknown"
    count = f"{report.gpus} GPU{'s' * (report.gpus != 1)}, " if report.gpus else "no GPU, "
    yield Finding(name, "device", None, count + device)
    yield from _memory(report)
    yield _compiler(report)
    yield from _addresses(report, ranks)
    texts = report.details.get("macos")
    if texts is not None:
        wanted = {device for rank in ranks for device in _devices(rank)}
        yield from macos.thunderbolt(name, texts, wanted, _interfaces(report, ranks))


def _packages(report: HostReport) -> Finding:
    problem = unfit(report)
    if problem is not None:
        return Finding(report.name, "Python", False, problem.cause, problem.fix)
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    detail = f"{report.python} at {report.executable}, {packages}"
    return Finding(report.name, "Python", True, detail)


def _backends(report: HostReport, backend: str, ranks: int) -> Finding:
    there = ", ".join(sorted(report.backends)) or "none"
    what = "MLX backends"
    wanted = init_name(backend) if backend not in ("", "any") else "ring"
    if wanted not in report.backends:
        fixes = {
            "mpi": "brew install open-mpi (macOS), apt install openmpi-bin libopenmpi3 (Debian)",
            "nccl": "pip install 'mlx[cuda13]', on a machine with an NVIDIA GPU",
            "jaccl": "needs macOS 26.2 and Thunderbolt 5; --backend ring works without",
        }
        return Finding(report.name, what, False, f"{there}; not {wanted}", fixes.get(wanted, ""))
    if wanted == "nccl" and ranks > report.gpus:
        detail = f"{there}; {report.gpus} GPUs for {ranks} ranks"
        return Finding(report.name, what, False, detail, "name this host fewer times")
    return Finding(report.name, what, True, there)


def _memory(report: HostReport) -> Iterator[Finding]:
    sample = report.details.get("memory")
    if sample is None:
        return
    total, available, limit = sample
    detail = f"{format_bytes(available)} of {format_bytes(total)} free"
    if available < LEAST_FREE * total:
        fix = "quit what holds memory there (Activity Monitor, top)"
        yield Finding(report.name, "memory", False, detail, fix)
    else:
        yield Finding(report.name, "memory", True, detail)
    texts = report.details.get("macos")
    if texts is not None:
        yield macos.gpu_limit(report.name, texts.get("wired_limit"), total, limit)


def _compiler(report: HostReport) -> Finding:
    what = "native module"
    if report.details.get("native"):
        return Finding(report.name, what, True, "compiled")
    if compiler := report.details.get("compiler"):
        return Finding(report.name, what, True, f"compiled on first use, by {compiler}")
    fix = "xcode-select --install" if report.system == "darwin" else "apt install g++"
    return Finding(
        report.name, what, None, "no C++ compiler: ranks are silent while they wait", fix
    )


def _addresses(report: HostReport, ranks: Sequence[Host]) -> Iterator[Finding]:
    if all(ip.startswith("127.") for rank in ranks for ip in rank.ips):
        return  # loopback needs no look
    has = _interfaces(report, ranks)
    foreign = [ip for rank in ranks for ip in rank.ips if _bare(ip) not in has]
    if foreign and report.addresses:
        own = [
            address.split("/")[0]
            for interface, addresses in report.addresses.items()
            for address in addresses
            if "/" in address and not address.startswith("127.")
        ]
        detail = f"{', '.join(dict.fromkeys(foreign))} is not an address of this host"
        yield Finding(report.name, "addresses", False, detail, f"in the hostfile: {', '.join(own)}")
    elif has:
        detail = ", ".join(f"{ip} ({interface})" for ip, interface in has.items())
        yield Finding(report.name, "addresses", True, detail)


def _interfaces(report: HostReport, ranks: Sequence[Host]) -> dict[str, str]:
    """The hostfile's addresses of a host that it has, with the interface of each."""
    there = {
        address.split("/")[0]: interface
        for interface, addresses in report.addresses.items()
        for address in addresses
    }
    wanted = dict.fromkeys(_bare(ip) for rank in ranks for ip in rank.ips)
    return {ip: there[ip] for ip in wanted if ip in there}


def _bare(ip: str) -> str:
    """The address without the port that a hostfile may give it."""
    return ip.rsplit(":", 1)[0] if ip.count(":") == 1 else ip


def _devices(rank: Host) -> Iterator[str]:
    for entry in rank.rdma:
        if isinstance(entry, str):
            yield entry
        elif entry is not None:
            yield from entry
