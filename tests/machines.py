"""Hosts for the tests: one sshd on this machine, or several on a network of namespaces.

Everything is private: keys, ports, configuration and the users' home are in a folder of the
test run, and only loopback or addresses of the namespaces' own bridge are used.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from needs import require

PREFIX = "mlxb"
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def require_sshd() -> None:
    """Skip unless an sshd can be started here."""
    there = SSHD is not None and shutil.which("ssh") is not None
    require(there, "there is no OpenSSH here: apt install openssh-server openssh-client")


@dataclass(frozen=True)
class Keys:
    """Keys of a test run, and a PATH folder whose ssh and scp use them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        for name in ("host", "user", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        (folder / "bin").mkdir()
        for program in ("ssh", "scp"):
            wrapper = folder / "bin" / program
            real = shutil.which(program)
            wrapper.write_text(f'#!/bin/sh\nexec {real} -F "{folder}/ssh_config" "$@"\n')
            wrapper.chmod(0o755)
        return cls(folder)

    @property
    def path(self) -> str:
        """PATH with the wrappers first."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def know(self, name: str, key: str = "host") -> Path:
        """A known_hosts file in which `name` has a key of this run."""
        file = self.folder / f"known-{name}-{key}"
        kind, blob = (self.folder / f"{key}.pub").read_text().split()[:2]
        file.write_text(f"{name} {kind} {blob}\n")
        return file

    def write_config(self, hosts: dict[str, dict[str, object]]) -> None:
        """The client's configuration: options by host name, over those of all hosts."""
        common = {
            "IdentityFile": self.folder / "user",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "GlobalKnownHostsFile": "/dev/null",
            "User": _user(),
        }
        lines = []
        for name, options in hosts.items():
            known = {"HostKeyAlias": name, "UserKnownHostsFile": self.know(name)}
            merged = {**common, **known, **options}
            lines += [f"Host {name}", *(f"  {key} {value}" for key, value in merged.items())]
        (self.folder / "ssh_config").write_text("\n".join(lines) + "\n")


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def start_sshd(
    keys: Keys, name: str, address: str, port: int, inside: list[str]
) -> subprocess.Popen[bytes]:
    """Start an sshd and wait until it listens.

    Parameters
    ----------
    keys
        Of this run.
    name
        For its files; its users' home is the folder ``home-NAME``.
    address, port
        Where it listens.
    inside
        Command that it is started with (``ip netns exec …``), or nothing.
    """
    home = keys.folder / f"home-{name}"
    home.mkdir()
    cache = os.environ.get("MLXBENCH_CACHE") or Path.home() / ".cache" / "mlxbench"
    config = keys.folder / f"sshd_config-{name}"
    lines = [
        f"ListenAddress {address}:{port}",
        f"HostKey {keys.folder / 'host'}",
        f"AuthorizedKeysFile {keys.folder / 'authorized_keys'}",
        f"PidFile {keys.folder / f'pid-{name}'}",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "MaxStartups 100",
        "MaxSessions 100",
        "AcceptEnv TMPDIR",
        f"SetEnv HOME={home} MLXBENCH_CACHE={cache}",
    ]
    # OpenSSH 9.8 and later shut out an address whose keys were refused: the tests' own.
    for line in ("PerSourcePenalties no",):
        config.write_text("\n".join([*lines, line]) + "\n")
        if subprocess.run([SSHD, "-t", "-f", config], capture_output=True).returncode != 0:
            config.write_text("\n".join(lines) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = (keys.folder / f"log-{name}").open("wb")
    command = [*inside, str(SSHD), "-D", "-e", "-f", str(config)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    log.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((address, port), 1).close()
            return process
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                text = (keys.folder / f"log-{name}").read_text()
                raise RuntimeError(f"sshd {name} does not listen:\n{text}") from None
            time.sleep(0.02)


def stop_sshd(process: subprocess.Popen[bytes]) -> None:
    """End an sshd with all its sessions."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Sshd:
    """One sshd on this machine; names that reach it, and names that do not.

    Attributes
    ----------
    good
        Two names of it.
    refused, unknown, changed, nowhere, closed, silent
        Names that fail: the key is refused, the host key is not known, or another one than
        before, the name does not resolve, nobody listens, somebody listens and says nothing.
    path
        PATH whose ``ssh`` knows these names.
    home
        Home of the users there.
    """

    path: str
    home: Path
    config: Path
    good: tuple[str, str] = ("mac-a", "mac-b")
    refused: str = "refused"
    unknown: str = "unknown"
    changed: str = "changed"
    nowhere: str = "nowhere"
    closed: str = "closed"
    silent: str = "silent"


@contextlib.contextmanager
def one_sshd() -> Iterator[Sshd]:
    """An sshd on loopback."""
    require_sshd()
    with contextlib.ExitStack() as stack:
        folder = private_folder(stack)
        keys = Keys.make(folder)
        port = free_port()
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        closed = stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        here = {"HostName": "127.0.0.1", "Port": port}
        # Hosts do not share /tmp: the daemons of Open MPI would meet there and fail at times.
        temporary = {name: folder / f"tmp-{name}" for name in Sshd.good}
        for path in temporary.values():
            path.mkdir()
        keys.write_config(
            {
                **{n: {**here, "SetEnv": f"TMPDIR={path}"} for n, path in temporary.items()},
                "refused": {**here, "IdentityFile": folder / "stranger"},
                "unknown": {**here, "UserKnownHostsFile": "/dev/null"},
                "changed": {**here, "UserKnownHostsFile": keys.know("changed", "stranger")},
                "nowhere": {"HostName": "no..where"},  # fails without asking a name server
                "closed": {**here, "Port": closed.getsockname()[1]},
                "silent": {**here, "Port": silent.getsockname()[1]},
            }
        )
        process = start_sshd(keys, "all", "127.0.0.1", port, [])
        stack.callback(stop_sshd, process)
        yield Sshd(keys.path, folder / "home-all", folder / "ssh_config")


@dataclass(frozen=True)
class Machine:
    """A host in a network namespace of its own.

    Attributes
    ----------
    name
        That ``ssh`` reaches it by.
    ip
        Its address.
    namespace
        Name of its network namespace.
    """

    name: str
    ip: str
    namespace: str


class Network:
    """Hosts on one switch: namespaces, with this machine as one more host.

    Attributes
    ----------
    machines
        The hosts.
    here
        Address of this machine on their network.
    path
        PATH whose ``ssh`` knows them.
    folder
        Files of this run; ``home-NAME`` is the home of a host's users.
    """

    def __init__(self, keys: Keys, network: int, count: int) -> None:
        self.path = keys.path
        self.folder = keys.folder
        self.here = f"10.77.{network}.1"
        self._bridge = f"{PREFIX}{os.getpid()}"
        self.machines = [
            Machine(f"mac-{letter}", f"10.77.{network}.{11 + i}", f"{PREFIX}-{os.getpid()}-{i}")
            for i, letter in enumerate("abcdefgh"[:count])
        ]
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.here}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for machine in self.machines:
            self._plug_in(machine)

    def _plug_in(self, machine: Machine) -> None:
        inside = ["-n", machine.namespace]
        ip("netns", "add", machine.namespace)
        port = self._port(machine)
        peer = ["peer", "name", "eth0", "netns", machine.namespace]
        ip("link", "add", port, "type", "veth", *peer)
        ip("link", "set", port, "master", self._bridge, "up")
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "addr", "add", f"{machine.ip}/24", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        # The local table comes after the rules of `eat`, which so can drop what arrives.
        ip(*inside, "rule", "add", "pref", "200", "lookup", "local")
        ip(*inside, "rule", "del", "pref", "0")

    def _port(self, machine: Machine) -> str:
        """The switch's port that leads to a machine."""
        return f"{self._bridge}p{self.machines.index(machine)}"

    def hostfile(self, folder: Path) -> str:
        """Write a hostfile of all hosts; its path."""
        path = folder / "hosts.json"
        path.write_text(json.dumps([{"ssh": m.name, "ips": [m.ip]} for m in self.machines]))
        return str(path)

    def cut(self, machine: Machine) -> None:
        """Pull a machine's cable."""
        ip("link", "set", self._port(machine), "down")

    def mend(self, machine: Machine) -> None:
        """Put its cable back."""
        ip("link", "set", self._port(machine), "up")

    @contextlib.contextmanager
    def eaten(self, at: Machine, source: str) -> Iterator[None]:
        """A firewall at a machine that drops what `source` sends, except to its sshd."""
        ports = ["ipproto", "tcp", "dport", "1024-65534", "blackhole"]
        rule = ["pref", "100", "from", source, "iif", "eth0", *ports]
        ip("-n", at.namespace, "rule", "add", *rule)
        try:
            yield
        finally:
            ip("-n", at.namespace, "rule", "del", *rule)


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """Hosts in namespaces of their own, each with an sshd, joined by a switch."""
    require_sshd()
    require(sys.platform == "linux", "network namespaces are Linux's")
    require(shutil.which("ip") is not None, "there is no ip command here: apt install iproute2")
    require(os.geteuid() == 0, "network namespaces need root")
    with contextlib.ExitStack() as stack:
        folder = private_folder(stack)
        keys = Keys.make(folder)
        with open(Path(tempfile.gettempdir()) / f"{PREFIX}-network.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stack.callback(_remove, os.getpid())
            net = Network(keys, _free_network(), count)
        keys.write_config({m.name: {"HostName": m.ip} for m in net.machines})
        for machine in net.machines:
            inside = ["ip", "netns", "exec", machine.namespace]
            stack.callback(stop_sshd, start_sshd(keys, machine.name, machine.ip, 22, inside))
        yield net


def private_folder(stack: contextlib.ExitStack) -> Path:
    """A folder of this test run; first, what killed runs have left is removed."""
    folders = {path.name: path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*")}
    for name in {*_namespaces(), *folders}:
        owner = int(name.split("-")[1])
        if not psutil.pid_exists(owner):
            _remove(owner)
            if name in folders:
                _end_sshds(folders[name])
                shutil.rmtree(folders[name], ignore_errors=True)
    prefix = f"{PREFIX}-{os.getpid()}-"
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))


def _end_sshds(folder: Path) -> None:
    for process in psutil.process_iter(["cmdline"]):
        if f"{folder}/sshd_config" in " ".join(process.info["cmdline"] or ()):
            process.kill()


def _remove(owner: int) -> None:
    """End all processes in the namespaces of a test run; remove these, and its switch."""
    for name in _namespaces():
        if name.startswith(f"{PREFIX}-{owner}-"):
            for pid in ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)
    if shutil.which("ip") is None:
        return
    links = [link["ifname"] for link in json.loads(ip("-j", "link", "show", "type", "bridge"))]
    if f"{PREFIX}{owner}" in links:
        ip("link", "del", f"{PREFIX}{owner}")


def _namespaces() -> list[str]:
    if shutil.which("ip") is None:
        return []
    names = [line.split()[0] for line in ip("netns", "list").splitlines() if line]
    return [name for name in names if name.startswith(f"{PREFIX}-")]


def _free_network() -> int:
    """The x of a network 10.77.x.0/24 that this machine is not in."""
    used = ip("-4", "-o", "addr")
    return next(x for x in range(256) if f" 10.77.{x}." not in used)


def ip(*arguments: str) -> str:
    """Run iproute2's ip."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
