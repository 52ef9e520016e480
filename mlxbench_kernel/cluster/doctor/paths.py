"""Whether the hosts reach one another, and this machine, on ports that nobody chose."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mlxbench_kernel.cluster import hosts, reach, rendezvous
from mlxbench_kernel.cluster.doctor.finding import Finding
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.cluster.report import HostReport
from mlxbench_kernel.errors import ClusterError

LISTEN_SECONDS = 10.0
CONNECT_SECONDS = 3.0
FIX = "look at the cable, the address in the hostfile and the firewall on {host}"


def between(
    ranks: Sequence[Host], reports: Mapping[str, HostReport], backend: str
) -> Iterator[Finding]:
    """Try every path that the ranks of `backend` will need, on free ports.

    Parameters
    ----------
    ranks
        The hostfile's entries.
    reports
        Of the hosts that answered, by their ssh name.
    backend
        Whose paths; "" or "any" for ring's.
    """
    backend = backend if backend not in ("", "any") else "ring"
    wanted = rendezvous.reservations(backend, ranks)
    ips: dict[str, list[str]] = defaultdict(list)
    for host, own in zip(ranks, wanted, strict=True):
        ips[host.ssh] += own
    asked = [report for name, report in reports.items() if ips[name]]
    with reach.listeners(asked, ips, LISTEN_SECONDS) as listening:
        there = {name: iter(addresses) for name, addresses in listening.items()}
        addresses = [
            [next(there.get(host.ssh, iter(())), "") for _ in own]
            for host, own in zip(ranks, wanted, strict=True)
        ]
        where = {
            address: host.ssh
            for host, own in zip(ranks, addresses, strict=True)
            for address in own
            if address
        }
        targets = rendezvous.targets(backend, addresses)
        tries: dict[str, list[str]] = {name: [] for name in reports}
        for host, paths in zip(ranks, targets, strict=True):
            if host.ssh in reports:
                away = [path for path in paths if path and where[path] != host.ssh]
                tries[host.ssh] += [path for path in away if path not in tries[host.ssh]]
        asking = [reports[name] for name, paths in tries.items() if paths]
        failed = reach.unreachable(asking, [tries[r.ssh] for r in asking], CONNECT_SECONDS)
    for report, failing in zip(asking, failed, strict=True):
        for address in tries[report.ssh]:
            target = reports[where[address]].name
            yield _path(report.name, target, address, failing.get(address), FIX)


def back(reports: Mapping[str, HostReport]) -> Iterator[Finding]:
    """Try the way from each host to a free port of this machine, where the controller listens."""
    remote = [report for report in reports.values() if not report.local]
    if not remote:
        return
    fix = "let Python through the firewall of {host} (macOS: System Settings, Network, Firewall)"
    try:
        ip = hosts.our_address(reports)
    except ClusterError as error:
        yield Finding("this machine", "way back", False, str(error))
        return
    with contextlib.ExitStack() as stack:
        address = reach.listen_here(stack, ip)
        failed = reach.unreachable(remote, [[address]] * len(remote), CONNECT_SECONDS)
    for report, failing in zip(remote, failed, strict=True):
        yield _path(report.name, "this machine", address, failing.get(address), fix)


def _path(source: str, target: str, address: str, why: str | None, fix: str) -> Finding:
    what = f"to {target}"
    if why is None:
        return Finding(source, what, True, f"reaches {address}")
    return Finding(source, what, False, f"cannot reach {address} ({why})", fix.format(host=target))
