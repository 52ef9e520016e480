"""Hostfiles, exactly as ``mlx.launch`` reads and ``mlx.distributed_config`` writes them.

Format: MLX 0.32.4, ``mlx/_distributed_utils/common.py`` (``Hostfile.from_file``): a list of
``{"ssh": …, "ips": […], "rdma": […]}``, or an object with ``backend``, ``envs`` and ``hosts``.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxbench_kernel.errors import UsageError

BACKENDS = ("ring", "jaccl", "jaccl-ring", "nccl", "mpi")
LOCAL = ("127.0.0.1", "localhost", "::1")

Rdma = tuple[str | tuple[str, ...] | None, ...]


@dataclass(frozen=True)
class Host:
    """One rank's host.

    Attributes
    ----------
    ssh
        Name that ``ssh`` connects to.
    ips
        Addresses that the ranks talk over.
    rdma
        For each rank the RDMA device that leads to it, None for the rank itself.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: Rdma = ()

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, reached without ssh."""
        return self.ssh in LOCAL


@dataclass(frozen=True)
class Hostfile:
    """One host per rank, in rank order, with what applies to all of them."""

    hosts: tuple[Host, ...]
    backend: str = ""
    envs: dict[str, str] = field(default_factory=dict)
    path: str = ""

    @classmethod
    def local(cls, n: int) -> Hostfile:
        """`n` ranks on this machine."""
        return cls(tuple(Host("127.0.0.1", ("127.0.0.1",)) for _ in range(n)))

    @classmethod
    def read(cls, path: str | Path) -> Hostfile:
        """Read a hostfile.

        Raises
        ------
        UsageError
            It is missing, not JSON, or not of the documented form.
        """
        try:
            file = Path(path).expanduser()
        except RuntimeError:
            raise UsageError(f"hostfile {path}: there is no such user") from None
        try:
            data = json.loads(file.read_text())
        except FileNotFoundError:
            there = sorted(p.name for p in file.parent.glob("*.json"))
            near = difflib.get_close_matches(file.name, there, 5, 0.0)
            hint = f"; nearest in that folder: {', '.join(near)}" if near else ""
            raise UsageError(f"hostfile {file} does not exist{hint}") from None
        except OSError as error:
            raise UsageError(f"hostfile {file} cannot be read: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"hostfile {file} is not JSON: {error}") from None
        try:
            return cls._from_json(data, str(file))
        except (_Wrong, UsageError) as wrong:
            raise UsageError(f"hostfile {file}: {wrong}") from None

    @classmethod
    def _from_json(cls, data: Any, path: str) -> Hostfile:
        backend, envs = "", {}
        if isinstance(data, dict):
            _known(data, ("backend", "envs", "hosts"), "the file")
            if "hosts" not in data:
                raise _Wrong('"hosts" is missing')
            backend, envs, data = data.get("backend", ""), data.get("envs", []), data["hosts"]
            if backend not in ("", "any", *BACKENDS):
                raise _Wrong(f'"backend" is {backend!r}; use {_nearest(backend, BACKENDS)}')
            if not isinstance(envs, list):
                raise _Wrong('"envs" is not a list of "NAME=VALUE"')
            try:
                envs = dict(parse_env(text) for text in envs)
            except UsageError as error:
                raise _Wrong(f'"envs": {error}') from None
        if not isinstance(data, list) or not data:
            raise _Wrong('a list of hosts is expected: [{"ssh": "mac-a", "ips": ["10.0.0.1"]}, …]')
        hosts = tuple(_host(entry, index) for index, entry in enumerate(data))
        seen: dict[str, int] = {}
        for index, host in enumerate(hosts):
            for ip in host.ips:
                if _port(ip) and ip in seen:
                    raise _Wrong(f"{ip} stands at host {seen[ip]} and again at host {index}")
                seen[ip] = index
        return cls(hosts, backend, envs, path)

    def check(self, backend: str) -> None:
        """See that the hostfile has what `backend` needs.

        Raises
        ------
        UsageError
            Something is missing; the message says at which host.
        """
        name = f"hostfile {self.path}" if self.path else "the hosts"
        if len(self.hosts) == 1:
            return
        try:
            if backend == "ring":
                self._check_ring()
            elif backend in ("jaccl", "jaccl-ring"):
                self._check_rdma(neighbours_only=backend == "jaccl-ring")
            elif backend == "nccl":
                self._check_meeting("nccl")
        except _Wrong as wrong:
            raise UsageError(f"{name}: {wrong}") from None

    def _check_ring(self) -> None:
        first = len(self.hosts[0].ips)
        for index, host in enumerate(self.hosts):
            if not host.ips:
                raise _Wrong(f'host {index} ({host.ssh}) has no "ips": ring needs one or more')
            for ip in host.ips:
                if ip.count(":") > 1:
                    raise _Wrong(
                        f"host {index} ({host.ssh}): {ip} is an IPv6 address, which MLX's ring "
                        "cannot parse: use an IPv4 address"
                    )
            if len(host.ips) != first:
                raise _Wrong(
                    f"host {index} ({host.ssh}) has {len(host.ips)} ips and host 0 has {first}: "
                    "ring needs the same number everywhere"
                )
            for ip in host.ips:
                _check_ipv4(ip, index, host)

    def _check_meeting(self, backend: str) -> None:
        first = self.hosts[0]
        if not first.ips:
            raise _Wrong(
                f'host 0 ({first.ssh}) has no "ips": {backend} meets there, '
                "name one that all hosts reach"
            )
        _check_ipv4(first.ips[0], 0, first)

    def _check_rdma(self, neighbours_only: bool) -> None:
        size = len(self.hosts)
        self._check_meeting("jaccl")
        for index, host in enumerate(self.hosts):
            if len(host.rdma) != size:
                raise _Wrong(
                    f'host {index} ({host.ssh}): "rdma" has {len(host.rdma)} entries for '
                    f"{size} hosts; mlx.distributed_config writes it"
                )
            if host.rdma[index] is not None:
                raise _Wrong(f'host {index} ({host.ssh}): "rdma"[{index}] is its own: use null')
            peers = {(index - 1) % size, (index + 1) % size} if neighbours_only else range(size)
            for peer in peers:
                if peer != index and host.rdma[peer] is None:
                    raise _Wrong(
                        f'host {index} ({host.ssh}): "rdma"[{peer}] is null, but jaccl '
                        f"needs a device to {self.hosts[peer].ssh}"
                    )
        if neighbours_only:
            self._check_wires()

    def _check_wires(self) -> None:
        # MLX takes a full mesh instead where the ring is uneven (`init` in jaccl.cpp).
        size = len(self.hosts)
        if all(host.rdma.count(None) == 1 for host in self.hosts):
            return
        first = _wires(self.hosts[0].rdma[1])
        for index, host in enumerate(self.hosts):
            for peer in ((index - 1) % size, (index + 1) % size):
                if (wires := _wires(host.rdma[peer])) != first:
                    raise _Wrong(
                        f'host {index} ({host.ssh}): "rdma"[{peer}] has {wires} devices and '
                        f"host 0 has {first}: jaccl-ring needs the same number between all "
                        "neighbours"
                    )


class _Wrong(Exception):
    """What is wrong inside a hostfile; `Hostfile` adds the file's name."""


def _host(entry: Any, index: int) -> Host:
    where = f"host {index}"
    if not isinstance(entry, dict):
        raise _Wrong(f'{where} is not an object like {{"ssh": "mac-a", "ips": ["10.0.0.1"]}}')
    _known(entry, ("ssh", "ips", "rdma"), where)
    ssh = entry.get("ssh")
    if not isinstance(ssh, str) or not ssh:
        raise _Wrong(f'{where}: "ssh" is missing or not a name')
    if ssh.startswith("-") or re.search(r"\s", ssh):
        raise _Wrong(f'{where}: "ssh" is {ssh!r}, which is no host name')
    ips, rdma = entry.get("ips", []), entry.get("rdma", [])
    if not isinstance(ips, list):
        raise _Wrong(f'{where} ({ssh}): "ips" is not a list')
    for ip in ips:
        try:
            # A number would be taken for an address too.
            ipaddress.ip_address(ip.removesuffix(f":{_port(ip)}") if isinstance(ip, str) else "")
            if _port(ip) and not 0 < int(_port(ip)) < 2**16:
                raise _Wrong(f"{where} ({ssh}): {ip!r} has no port from 1 to 65535")
        except ValueError:
            raise _Wrong(f"{where} ({ssh}): {ip!r} is not an IP address") from None
    if not isinstance(rdma, list) or not all(_is_rdma(device) for device in rdma):
        raise _Wrong(f'{where} ({ssh}): "rdma" is not a list of null and device names')
    devices = tuple(tuple(d) if isinstance(d, list) else d for d in rdma)
    return Host(ssh, tuple(ips), devices)


def _is_rdma(device: Any) -> bool:
    if isinstance(device, list):
        return bool(device) and all(isinstance(name, str) and name for name in device)
    return device is None or (isinstance(device, str) and device != "")


def _wires(device: str | tuple[str, ...] | None) -> int:
    return len(device) if isinstance(device, tuple) else 1


def _check_ipv4(ip: str, index: int, host: Host) -> None:
    """Refuse what MLX cannot use: its sockets are IPv4 (``mlx/distributed/utils.cpp``)."""
    if ip.count(":") > 1:
        raise _Wrong(
            f"host {index} ({host.ssh}): {ip} is an IPv6 address, which MLX cannot use; "
            "write its IPv4 address"
        )


def _port(ip: Any) -> str:
    """The port of ``"1.2.3.4:port"``, else ""."""
    found = re.fullmatch(r"\d+\.\d+\.\d+\.\d+:(\d+)", str(ip))
    return found[1] if found else ""


def _known(entry: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in keys:
            raise _Wrong(f"{where} has an unknown key {key!r}; use {_nearest(key, keys)}")


def _nearest(word: Any, words: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(word), words, 1, 0.5)
    return close[0] if close else ", ".join(words)


def parse_env(text: Any) -> tuple[str, str]:
    """``"NAME=VALUE"`` as a pair.

    Raises
    ------
    UsageError
        It is not of that form.
    """
    found = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", str(text), re.S)
    if found is None:
        raise UsageError(f"{text!r} is not an environment variable: write NAME=VALUE")
    return found[1], found[2]
