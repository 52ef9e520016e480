"""Looks at the hosts before anything is started there, and gets them ready."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxbench_kernel.cluster import lifetime, modules, reach, ssh
from mlxbench_kernel.cluster import probe as probe_script
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.cluster.report import HostReport, unfit
from mlxbench_kernel.errors import ClusterError

__all__ = ["HostReport", "clean", "look", "our_address", "plan", "prepare", "probe"]

CLEAN_SECONDS = 15.0
COPY_SECONDS = 60.0
REACH_SECONDS = 3.0


def probe(hosts: Iterable[Host], python: str | None, timeout: float) -> dict[str, HostReport]:
    """Ask every distinct host at once, over one ssh connection each.

    Parameters
    ----------
    hosts
        As in the hostfile; the same host may be there twice.
    python
        Python to use there; the path of this one by default.
    timeout
        Seconds for all of them together.

    Returns
    -------
    dict
        Reports by the host's ssh name.

    Raises
    ------
    ClusterError
        Hosts that cannot be used, one line for each: why, and what to type.
    """
    hosts = list(hosts)
    found = dict(look(hosts, python, timeout))
    reports, failures = {}, []
    for name in dict.fromkeys(host.ssh for host in hosts):
        report = found[name]
        if isinstance(report, HostReport):
            reports[name] = report
            failures.append(unfit(report))
        else:
            failures.append(report)
    if any(failures):
        raise ClusterError("\n".join(str(failure) for failure in failures if failure))
    return reports


def look(
    hosts: Iterable[Host], python: str | None, timeout: float, *, details: bool = False
) -> Iterator[tuple[str, HostReport | ssh.Failure]]:
    """Ask every distinct host at once; each report as soon as it is there.

    Parameters
    ----------
    hosts, python, timeout
        As in `probe`.
    details
        Whether to ask for `probe.details` too.

    Yields
    ------
    name, report
        The host's ssh name, and its report; or why there is none.
    """
    folder = os.getcwd()
    distinct = {host.ssh: host.is_local for host in hosts}
    if not details and python in (None, sys.executable):
        for name in [name for name, local in distinct.items() if local]:
            del distinct[name]
            yield name, _report(name, True, probe_script.report(folder))
    source = Path(probe_script.__file__).read_text()
    arguments = (folder, "details" if details else "")
    calls = [
        ssh.Call(name, local, python or sys.executable, source, arguments)
        for name, local in distinct.items()
    ]
    for index, answer in ssh.run_each(calls, timeout):
        call = calls[index]
        said = ssh.said(answer.stdout, probe_script.MARK)
        if said is None:
            yield call.host, ssh.explain(call, answer)
        else:
            yield call.host, _report(call.host, call.local, said)


def _report(name: str, local: bool, said: dict[str, Any]) -> HostReport:
    return HostReport(ssh=name, local=local, **{**said, "backends": set(said["backends"])})


def our_address(reports: Mapping[str, HostReport]) -> str:
    """The address of this machine that all hosts reach: "" when all of them are this machine.

    Each host said how it sees us. Where that is not one address of ours (a jump host or NAT
    lies between, ssh took IPv6, or the hosts are on several networks), the addresses that
    may do are tried from every host.

    Raises
    ------
    ClusterError
        There is none.
    """
    remote = [report for report in reports.values() if not report.local]
    if not remote:
        return ""
    own = [
        ipaddress.IPv4Interface(address)
        for addresses in probe_script.addresses().values()
        for address in addresses
        if ":" not in address
    ]
    # A host that sees us at its own loopback is this machine, and reaches all we have.
    seen = {report.caller for report in remote if not _loopback(report.caller)}
    if not seen:
        return "127.0.0.1"
    if len(seen) == 1 and seen <= {str(address.ip) for address in own}:
        return seen.pop()
    theirs = [
        ipaddress.IPv4Interface(address).ip
        for report in remote
        for addresses in report.addresses.values()
        for address in addresses
        if ":" not in address
    ]
    candidates = [address for address in own if not address.ip.is_loopback]
    candidates.sort(
        key=lambda own: (str(own.ip) not in seen, not any(ip in own.network for ip in theirs))
    )
    found = _first_reached(remote, [str(address.ip) for address in candidates])
    if found is None:
        raise ClusterError(
            f"{', '.join(report.ssh for report in remote)} cannot connect back to this machine "
            f"at {', '.join(str(address.ip) for address in candidates) or 'any address'}: put "
            "all of them on one network without NAT between, and let Python through the firewall"
        )
    return found


def _loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback if address else False


def _first_reached(remote: Sequence[HostReport], ips: Sequence[str]) -> str | None:
    """The first of our addresses that every host reaches."""
    with contextlib.ExitStack() as stack:
        addresses = [reach.listen_here(stack, ip) for ip in ips]
        failed = reach.unreachable(remote, [addresses] * len(remote), REACH_SECONDS)
    for ip, address in zip(ips, addresses, strict=True):
        if not any(address in failing for failing in failed):
            return ip
    return None


def plan(report: HostReport, cluster: str, rank: int) -> dict[str, Any]:
    """The plan of a rank on a host, see `Machinery.create`."""
    home = f"{report.home}/.cache/mlxbench/run/{cluster}"
    return {
        "ssh": report.ssh,
        "python": report.executable,
        "folder": f"{home}/rank-{rank}",
        "work_dir": os.getcwd() if report.has_folder else home,
        "connection": f"{home}/rank-{rank}/controller.json",
        "environment": {},
    }


def prepare(
    reports: Mapping[str, HostReport], plans: Sequence[dict[str, Any]], folder: str
) -> list[str]:
    """Make the ranks' folders on the hosts and copy the notebook's modules there.

    Parameters
    ----------
    reports
        By the host's ssh name.
    plans
        One per rank, from `plan`; each is given the way to the modules.
    folder
        The notebook's folder.

    Returns
    -------
    list of str
        What was copied where, for a person to read.

    Raises
    ------
    ClusterError
        A host could not be prepared.
    """
    found = modules.collect(Path(folder))
    calls = []
    for report in reports.values():
        own = [plan for plan in plans if plan["ssh"] == report.ssh]
        if report.local or not own:
            continue
        target = str(Path(own[0]["folder"]).parent / "modules")
        folders = tuple(plan["folder"] for plan in own)
        calls.append(modules.copying(found, report.ssh, report.executable, target, folders))
        for each in own:
            before = each["environment"].get("PYTHONPATH")
            each["environment"]["PYTHONPATH"] = f"{target}:{before}" if before else target
    for call, answer in zip(calls, ssh.run(calls, COPY_SECONDS), strict=True):
        if answer.code != 0:
            raise ClusterError(f"{ssh.explain(call, answer)} (while modules were copied there)")
    if not found.files:
        return []
    return [f"copied to {call.host}: {found}" for call in calls]


# What belongs to a cluster has its folder there on the command line.
_CLEAN = """
import os, shutil, sys
import psutil
home = sys.argv[1]
left = [
    process
    for process in psutil.process_iter(["cmdline"])
    if any(home + "/" in part for part in process.info["cmdline"] or ())
]
for process in left:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
psutil.wait_procs(left, timeout=5)
shutil.rmtree(home, ignore_errors=True)
"""


def clean(plans: Sequence[dict[str, Any]]) -> list[str]:
    """End what is left of ranks on other hosts, and remove their folders there.

    Parameters
    ----------
    plans
        One per rank, see `Machinery.create`.

    Returns
    -------
    list of str
        A line for each host where that could not be done.
    """
    remote = {plan["ssh"]: plan for plan in plans if plan["ssh"]}
    calls = [
        ssh.Call(name, False, plan["python"], _CLEAN, (os.path.dirname(plan["folder"]),))
        for name, plan in remote.items()
    ]
    patience = lifetime.patience(any(plan.get("keep", False) for plan in plans))
    return [
        f"{ssh.explain(call, answer)} Its ranks leave by themselves after {patience} without a "
        f"controller, and their part of the folder {call.arguments[0]} goes with them."
        for call, answer in zip(calls, ssh.run(calls, CLEAN_SECONDS), strict=True)
        if answer.code != 0
    ]
