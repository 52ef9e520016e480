"""Brings ranks up: plan, start, agree on addresses, try the paths, join the group."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxbench_kernel import native
from mlxbench_kernel.cluster import hosts as remote
from mlxbench_kernel.cluster import reach, rendezvous, state
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.forming import PATH_SECONDS, Forming
from mlxbench_kernel.cluster.hostfile import BACKENDS, Host, Hostfile
from mlxbench_kernel.cluster.machinery import Machinery, Progress, local_plan
from mlxbench_kernel.cluster.report import HostReport
from mlxbench_kernel.cluster.state import ClusterInfo, Options, RankInfo
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.rank import files, startup
from mlxbench_kernel.rank.requests import FREED_IN_PLACE


class BringUp:
    """One attempt to bring ranks up; either all of them are there, or nothing is left.

    Parameters
    ----------
    options
        What the user asked for.
    progress
        Called with the fraction done and a text.
    """

    def __init__(self, options: Options, progress: Progress | None) -> None:
        self._options = options
        self._progress = progress or (lambda done, text: None)
        self._deadline = time.monotonic() + options.timeout
        self._notes: list[str] = []
        self._plans: list[dict[str, Any]] = []

    def run(self) -> tuple[ClusterInfo, Machinery, BenchClient]:
        """Do it.

        Raises
        ------
        UsageError, ClusterError, StorageError
            See `Cluster.up`.
        """
        hostfile = self._hostfile()
        wanted = (self._options.backend, hostfile.backend)
        named = next((name for name in wanted if name not in ("", "any")), "")
        if named and hostfile.path:
            hostfile.check(named)  # before anything is asked of hosts
        self._progress(0.0, "looking at the hosts")
        reports = remote.probe(hostfile.hosts, self._options.python, timeout=10.0)
        backend = rendezvous.choose(
            self._options.backend,
            hostfile.backend,
            hostfile.hosts,
            [reports[host.ssh].backends for host in hostfile.hosts],
            [reports[host.ssh].gpus for host in hostfile.hosts],
        )
        hostfile.check(backend)
        if not native.ready():
            self._progress(0.05, "compiling the native module, once (about 10 s)")
            native.load()
        home = state.new_home()
        machinery: Machinery | None = None
        client: BenchClient | None = None
        try:
            self._progress(0.1, "starting the controller and the ranks")
            machinery = self._machinery(home, hostfile, backend, reports)
            machinery.launch()
            client = machinery.connect(self._left())
            _check_controller(machinery, reports)
            size = len(hostfile.hosts)
            machinery.wait_for_ranks(
                client,
                self._deadline,
                lambda there: self._progress(0.2 + 0.6 * there / size, f"{there} of {size} ranks"),
            )
            self._progress(0.85, f"joining the group ({backend})")
            info = self._join(home, hostfile.hosts, backend, client)
            self._progress(1.0, "up")
        except BaseException as error:
            from mlxbench_kernel.cluster.ending import end

            if machinery is not None:
                end(home, machinery, client, range(len(hostfile.hosts)))
            else:
                remote.clean(self._plans)
                shutil.rmtree(home, ignore_errors=True)
            told = (
                files.explain(error, home, state.ELSEWHERE) if isinstance(error, OSError) else None
            )
            if told is not None:
                raise told from None
            raise
        return info, machinery, client

    def _hostfile(self) -> Hostfile:
        options = self._options
        if options.n is not None and options.n < 1:
            raise UsageError(f"-n {options.n}: give the number of ranks, 1 or more")
        if options.backend not in ("", "any", *BACKENDS):
            raise UsageError(f"unknown backend {options.backend!r}: any, {', '.join(BACKENDS)}")
        if options.hostfile is None:
            return Hostfile.local(2 if options.n is None else options.n)
        hostfile = Hostfile.read(options.hostfile)
        count = len(hostfile.hosts)
        if options.n is not None and options.n > count:
            raise UsageError(
                f"-n {options.n} but {options.hostfile} has {count} hosts; name a host twice in "
                "it for two ranks there"
            )
        if options.n is not None and options.n < count:
            rdma = options.n
            chosen = tuple(
                Host(host.ssh, host.ips, host.rdma[:rdma]) for host in hostfile.hosts[: options.n]
            )
            hostfile = Hostfile(chosen, hostfile.backend, hostfile.envs, hostfile.path)
        return hostfile

    def _machinery(
        self,
        home: Path,
        hostfile: Hostfile,
        backend: str,
        reports: Mapping[str, HostReport],
    ) -> Machinery:
        options = self._options
        environment = {**hostfile.envs, **options.env}
        listen = remote.our_address(reports)
        own_gpus = rendezvous.gpus(
            backend,
            hostfile.hosts,
            [_visible_gpus(environment, host) for host in hostfile.hosts],
        )
        plans = self._plans
        for rank, (host, gpu) in enumerate(zip(hostfile.hosts, own_gpus, strict=True)):
            if host.is_local:
                plan = local_plan(home, rank, options.python)
            else:
                plan = remote.plan(reports[host.ssh], home.name, rank)
            plan["environment"] = {**environment, **gpu}
            plans.append(plan)
        self._notes += remote.prepare(reports, plans, os.getcwd())
        mpirun = None
        if backend == "mpi" and len(hostfile.hosts) > 1:
            _check_mpi(reports.values())
            mpirun = rendezvous.mpirun(hostfile.hosts, list(plans[0]["environment"]))
        return Machinery.create(home, plans, mpirun=mpirun, keep=options.keep, listen=listen)

    def _join(
        self, home: Path, hosts: Sequence[Host], backend: str, client: BenchClient
    ) -> ClusterInfo:
        size = len(hosts)
        forming = Forming(client, hosts, backend, self._left())
        seed = self._options.seed
        seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        identities = forming.form([(startup.join, (seed,))] * size, self._again)
        self._note_native(hosts, identities)
        renewable = rendezvous.init_name(backend) in FREED_IN_PLACE and not any(
            who["native"] for who in identities
        )
        ranks = tuple(
            RankInfo(rank, who["host"], who["pid"], who["device"], who["mlx"])
            for rank, who in enumerate(identities)
        )
        info = ClusterInfo(
            home.name, size, backend if size > 1 else "one rank", seed, os.getcwd(), self._options,
            os.getpid(), state.process_started(), ranks, tuple(self._notes), tuple(hosts),
            renewable,
        )  # fmt: skip
        info.save()
        return info

    def _note_native(self, hosts: Sequence[Host], identities: Sequence[dict[str, Any]]) -> None:
        reasons = {host.ssh: who["native"] for host, who in zip(hosts, identities, strict=True)}
        for host, reason in reasons.items():
            if reason:
                self._notes.append(f"{host}: works without the native module ({reason})")

    def _again(self, text: str) -> None:
        self._progress(0.85, f"{text}: trying again")
        self._notes.append(f"{text}; the ring was formed again")

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 1.0)


def _check_mpi(reports: Collection[HostReport]) -> None:
    """See that one command line starts every rank, which is all that mpirun has."""
    if len({(report.local, report.executable, report.home) for report in reports}) > 1:
        raise UsageError(
            "backend mpi starts all ranks with one command line: all hosts need the same path of "
            "Python and of the home folder, and with others this machine is named as ssh reaches "
            "it, not 127.0.0.1; --backend ring needs none of that"
        )


def _visible_gpus(environment: Mapping[str, str], host: Host) -> str:
    """``CUDA_VISIBLE_DEVICES`` as the ranks of a host would find it, "" where it is not set."""
    inherited = os.environ if host.is_local else {}
    name = "CUDA_VISIBLE_DEVICES"
    return environment.get(name, inherited.get(name, ""))


def _check_controller(machinery: Machinery, reports: Mapping[str, HostReport]) -> None:
    """See that every host reaches the controller, else its ranks would be waited for in vain."""
    remote = [report for report in reports.values() if not report.local]
    if not remote:
        return
    address = machinery.address()
    failed = reach.unreachable(remote, [[address]] * len(remote), PATH_SECONDS)
    for report, unreachable in zip(remote, failed, strict=True):
        if unreachable:
            raise ClusterError(
                f"{report.ssh} cannot reach this machine at {address} "
                f"({unreachable[address]}): let Python through this machine's firewall"
            )
