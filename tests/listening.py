"""What listens on this machine and in the namespaces of hosts, and whose it is."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

import machines


@dataclass(frozen=True)
class Listener:
    """A TCP socket that listens.

    Attributes
    ----------
    place
        Name of the host, "here" for this machine.
    ip, port
        Where.
    pids
        The processes that hold it.
    """

    place: str
    ip: str
    port: int
    pids: frozenset[int]


def listeners(network: machines.Network) -> set[Listener]:
    """Everything that listens on the hosts, except their sshd, and on this machine."""
    found = set()
    for place, inside in [
        ("here", []),
        *((m.name, ["ip", "netns", "exec", m.namespace]) for m in network.machines),
    ]:
        done = subprocess.run([*inside, "ss", "-Hltnp"], check=True, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            ip, port = line.split()[3].rsplit(":", 1)
            if place == "here" or port != "22":
                pids = frozenset(map(int, re.findall(r"pid=(\d+)", line)))
                found.add(Listener(place, ip.strip("[]"), int(port), pids))
    return found
