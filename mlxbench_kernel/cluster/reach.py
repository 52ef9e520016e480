"""Whether hosts can reach one another: listeners on some, connections from the others."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from mlxbench_kernel.cluster import ssh
from mlxbench_kernel.cluster.report import HostReport
from mlxbench_kernel.interrupts import held

MARK = "mlxbench-reach:"

# Both run on the hosts. A connection is complete in the listener's backlog, before accept(2).
_CONNECT = """
import concurrent.futures, json, socket, sys
def failing(address):
    ip, port = address.rsplit(":", 1)
    try:
        socket.create_connection((ip.strip("[]"), int(port)), float(sys.argv[1])).close()
    except OSError as error:
        return error.strerror or str(error)
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    reasons = list(pool.map(failing, sys.argv[2:]))
print("MARK" + json.dumps({a: why for a, why in zip(sys.argv[2:], reasons) if why}))
""".replace("MARK", MARK)

_LISTEN = """
import json, socket, sys
kept, said = [], []
for ip in sys.argv[1:]:
    listener = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    try:
        listener.bind((ip, 0))
        listener.listen(16)
        port = listener.getsockname()[1]
        said.append(("[%s]:%d" if ":" in ip else "%s:%d") % (ip, port))
    except OSError:
        said.append("")
    kept.append(listener)
print("MARK" + json.dumps(said), flush=True)
sys.stdin.read()
""".replace("MARK", MARK)


def unreachable(
    reports: Sequence[HostReport], addresses: Sequence[Sequence[str]], timeout: float
) -> list[dict[str, str]]:
    """Ask each host to connect to addresses.

    Parameters
    ----------
    reports
        The hosts, each at most once.
    addresses
        For each of them ``"ip:port"`` of what it shall connect to.
    timeout
        Seconds that one connection may take.

    Returns
    -------
    list of dict
        For each host the addresses that it cannot reach, with the reason.
    """
    calls = [
        ssh.Call(report.ssh, report.local, report.executable, _CONNECT, (str(timeout), *wanted))
        for report, wanted in zip(reports, addresses, strict=True)
    ]
    result = []
    answers = ssh.run(calls, timeout + 2 * ssh.CONNECT_SECONDS)
    for call, answer in zip(calls, answers, strict=True):
        failed = ssh.said(answer.stdout, MARK)
        if failed is None:  # the host itself is gone
            failed = dict.fromkeys(call.arguments[1:], str(ssh.explain(call, answer)))
        result.append(failed)
    return result


@contextlib.contextmanager
def listeners(
    reports: Sequence[HostReport], ips: Mapping[str, Sequence[str]], timeout: float
) -> Iterator[dict[str, list[str]]]:
    """Ports that listen on the hosts while the context is open.

    Parameters
    ----------
    reports
        The hosts, each at most once.
    ips
        For each host, by its ssh name, the addresses to listen on; ports are free ones.
    timeout
        Seconds until all of them must listen.

    Yields
    ------
    dict
        ``"ip:port"`` by the host's ssh name, in the order of its `ips`; "" where the host has
        no such address, an empty list where it did not answer.
    """
    calls = [
        ssh.Call(report.ssh, report.local, report.executable, _LISTEN, tuple(ips[report.ssh]))
        for report in reports
    ]
    running: dict[str, subprocess.Popen[bytes]] = {}
    deadline = time.monotonic() + timeout
    pool = ThreadPoolExecutor(max(len(calls), 1))
    try:
        with held():  # a Ctrl-C here would leave a process that nobody knows
            for call in calls:
                started = ssh.start(call)
                if not isinstance(started, ssh.Answer):
                    running[call.host] = started
        first = {}
        for call in calls:
            process = running.get(call.host)
            if process is None or process.stdin is None or process.stdout is None:
                continue
            try:
                process.stdin.write(call.source.encode())
                process.stdin.flush()
            except BrokenPipeError:
                continue
            first[call.host] = pool.submit(_first_line, process.stdout)
        found: dict[str, list[str]] = {call.host: [] for call in calls}
        for host, line in first.items():
            try:
                found[host] = line.result(max(deadline - time.monotonic(), 0.0)) or []
            except TimeoutError:
                pass
        yield found
    finally:
        for process in running.values():
            ssh.kill(process)
        pool.shutdown()
        for process in running.values():
            ssh.close(process)


def listen_here(stack: contextlib.ExitStack, ip: str) -> str:
    """Listen on a free port of an address of this machine, until `stack` is closed.

    Returns
    -------
    str
        ``"ip:port"``.
    """
    listener = stack.enter_context(socket.create_server((ip, 0)))
    return f"{ip}:{listener.getsockname()[1]}"


def _first_line(stream: IO[bytes]) -> list[str] | None:
    """What a listener said first, None where it ended without."""
    for line in stream:
        said = ssh.said(line.decode(errors="replace"), MARK)
        if said is not None:
            return list(said)
    return None
