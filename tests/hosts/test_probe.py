"""Before anything is started, every host is asked: one clear line for each that cannot be used."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import machines
import psutil
import pytest

from mlxbench_kernel.cluster import hosts, reach, ssh
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.errors import ClusterError


def refusal(*names: str, python: str | None = None, timeout: float = 10.0) -> str:
    """What a user reads who tries to use these hosts."""
    with pytest.raises(ClusterError) as caught:
        hosts.probe([Host(name) for name in names], python, timeout)
    return str(caught.value)


def script(path: Path, lines: str) -> str:
    """A program that stands where a Python is expected."""
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def python_with(folder: Path, name: str, content: str) -> str:
    """This Python with one more file on its path, before all others."""
    file = folder / "more" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    command = f'PYTHONPATH="{folder}/more" exec "{sys.executable}" "$@"'
    return script(folder / "python", command)


def test_a_good_host_says_what_it_has(sshd: machines.Sshd) -> None:
    entries = [Host("mac-a"), Host("mac-b"), Host("mac-a"), Host("127.0.0.1")]
    reports = hosts.probe(entries, None, 20.0)
    assert list(reports) == ["mac-a", "mac-b", "127.0.0.1"]
    remote, local = reports["mac-a"], reports["127.0.0.1"]
    assert not remote.local and local.local
    assert remote.executable == local.executable == sys.executable
    assert remote.python == platform.python_version()
    assert remote.versions == local.versions and remote.versions["mlx"]
    assert remote.backends == local.backends and "ring" in remote.backends
    assert remote.home == str(sshd.home)
    assert remote.caller == "127.0.0.1" and local.caller == ""
    assert "127.0.0.1/8" in [ip for ips in remote.addresses.values() for ip in ips]


def test_the_notebooks_folder_is_looked_for_there(
    sshd: machines.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my research"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert hosts.probe([Host("mac-a")], None, 20.0)["mac-a"].has_folder
    folder.rmdir()
    monkeypatch.setattr(os, "getcwd", lambda: str(folder))
    assert not hosts.probe([Host("mac-a")], None, 20.0)["mac-a"].has_folder


def test_each_host_that_fails_has_one_line_of_its_own(sshd: machines.Sshd) -> None:
    names = ("refused", "unknown", "changed", "nowhere", "closed", "silent")
    started = time.monotonic()
    lines = refusal("mac-a", *names).splitlines()
    assert time.monotonic() - started < 9  # all at once: the slowest needs 5 s
    assert lines == [
        "refused refuses the key: ssh-copy-id refused",
        "unknown is not known yet: ssh unknown once, and say yes",
        "changed has another key than before: if that is right, ssh-keygen -R changed",
        "nowhere is not a name that can be found: look at the hostfile and ~/.ssh/config",
        "closed refuses ssh: on macOS turn Remote Login on (System Settings, Sharing)",
        "silent does not answer: is it awake and on this network?",
    ]


def test_a_host_without_that_python(sshd: machines.Sshd) -> None:
    says = "has no Python at /nowhere/python3: --python PATH names the one to use there"
    assert refusal("mac-a", python="/nowhere/python3") == f"mac-a {says}"
    assert refusal("127.0.0.1", python="/nowhere/python3").endswith(says)


def test_a_bare_python_lacks_everything(sshd: machines.Sshd, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    line = refusal("mac-a", python=python)
    assert line.startswith("mac-a lacks mlx, mlxbench, ipyparallel, ipykernel: on it, type ")
    assert f"{python} -m pip install " in line
    assert "\n" not in line


def test_another_mlx_version(sshd: machines.Sshd, tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: mlx\nVersion: 0.30.0\n"
    python = python_with(tmp_path, "mlx-0.30.0.dist-info/METADATA", metadata)
    ours = hosts.probe([Host("mac-a")], None, 20.0)["mac-a"].versions["mlx"]
    line = refusal("mac-a", python=python)
    assert line.startswith(f"mac-a has mlx 0.30.0 where this notebook has {ours}: on it, type ")
    assert f"=={ours}" in line


def test_an_mlx_that_does_not_load(sshd: machines.Sshd, tmp_path: Path) -> None:
    broken = "raise ImportError('libmlx.so: cannot open shared object file')\n"
    python = python_with(tmp_path, "mlx/__init__.py", broken)
    line = refusal("mac-a", python=python)
    assert "mac-a has an MLX that does not load (libmlx.so: cannot open" in line
    assert "pip install" in line


def test_another_python_minor(sshd: machines.Sshd, tmp_path: Path) -> None:
    old = "import platform\nplatform.python_version = lambda: '3.9.6'\n"
    line = refusal("mac-a", python=python_with(tmp_path, "sitecustomize.py", old))
    assert line.startswith("mac-a has Python 3.9.6 at ")
    assert line.endswith("--python PATH names another one there")


def test_a_python_that_fails_shows_its_last_line(sshd: machines.Sshd, tmp_path: Path) -> None:
    python = script(tmp_path / "python", 'echo "dyld: Library not loaded" >&2; exit 6')
    assert refusal("mac-a", python=python) == f"mac-a: {python} failed: dyld: Library not loaded"


def test_a_login_shell_that_talks_does_no_harm(sshd: machines.Sshd, tmp_path: Path) -> None:
    talk = f'echo "Welcome to mac-a"; echo "no mail" >&2; exec "{sys.executable}" "$@"'
    python = script(tmp_path / "python", talk)
    assert hosts.probe([Host("mac-a")], python, 20.0)["mac-a"].executable == sys.executable


def test_files_in_the_users_home_are_not_imported(sshd: machines.Sshd) -> None:
    trap = sshd.home / "json.py"
    trap.write_text("raise RuntimeError('imported')\n")
    try:
        assert hosts.probe([Host("mac-a")], None, 20.0)
    finally:
        trap.unlink()


def test_a_host_that_hangs_costs_only_the_time_that_was_given(
    sshd: machines.Sshd, tmp_path: Path
) -> None:
    python = script(tmp_path / "python", "sleep 60")
    before = set(psutil.Process().children())
    started = time.monotonic()
    line = refusal("mac-a", "127.0.0.1", python=python, timeout=1.5)
    assert time.monotonic() - started < 4
    assert "mac-a does not answer" in line
    assert set(psutil.Process().children()) <= before


def test_an_interrupt_ends_the_looking_at_once(sshd: machines.Sshd) -> None:
    this = psutil.Process()

    def interrupt_when_ssh_runs() -> None:
        while not any(child.name() == "ssh" for child in this.children()):
            time.sleep(0.01)
        os.kill(this.pid, signal.SIGINT)

    thread = threading.Thread(target=interrupt_when_ssh_runs)
    thread.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        hosts.probe([Host("silent")], None, 20.0)
    assert time.monotonic() - started < 2
    thread.join()
    assert not any(child.name() == "ssh" for child in this.children())


def test_an_interrupt_while_a_process_is_started_leaves_none(
    sshd: machines.Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    (report,) = hosts.probe([Host("mac-a")], None, 20.0).values()
    start = ssh.start

    def interrupted(call: ssh.Call) -> subprocess.Popen[bytes] | ssh.Answer:
        process = start(call)
        os.kill(os.getpid(), signal.SIGINT)  # before anything could keep the process
        return process

    monkeypatch.setattr(ssh, "start", interrupted)
    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        hosts.probe([Host("silent")], None, 20.0)
    assert set(psutil.Process().children()) <= before
    looked = reach.listeners([report], {"mac-a": ["127.0.0.1"]}, 5.0)
    with pytest.raises(KeyboardInterrupt), looked:
        pass
    assert set(psutil.Process().children()) <= before


def test_a_host_name_is_never_an_option(sshd: machines.Sshd, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    assert refusal(f"-oProxyCommand=touch {proof}")
    assert not proof.exists()


def test_the_users_ssh_configuration_may_ask_for_much(sshd: machines.Sshd) -> None:
    text = sshd.config.read_text()
    forward = f"LocalForward {machines.free_port()} 127.0.0.1:9"
    more = f"\nRequestTTY force\nRemoteCommand uptime\nExitOnForwardFailure yes\n{forward}\n"
    sshd.config.write_text(f"{text}\nHost *\n{more}")
    try:
        assert hosts.probe([Host("mac-a"), Host("mac-b")], None, 20.0)
    finally:
        sshd.config.write_text(text)


def test_a_host_whose_cable_is_pulled(namespaces: machines.Network) -> None:
    lost, *rest = namespaces.machines
    namespaces.cut(lost)
    started = time.monotonic()
    line = refusal(*(machine.name for machine in namespaces.machines))
    assert time.monotonic() - started < 9
    assert line.startswith(f"{lost.name} ") and "is it awake and on this network?" in line
    namespaces.mend(lost)
    assert set(hosts.probe([Host(machine.name) for machine in rest], None, 20.0))


def test_the_address_on_which_hosts_see_this_machine(namespaces: machines.Network) -> None:
    names = [Host(machine.name) for machine in namespaces.machines]
    reports = hosts.probe([*names, Host("127.0.0.1")], None, 20.0)
    assert {reports[host.ssh].caller for host in names} == {namespaces.here}
    assert hosts.our_address(reports) == namespaces.here
    assert hosts.our_address({"127.0.0.1": reports["127.0.0.1"]}) == ""


def test_behind_a_jump_host_an_address_is_found_by_trying(namespaces: machines.Network) -> None:
    names = [Host(machine.name) for machine in namespaces.machines]
    reports = hosts.probe(names, None, 20.0)
    seen = {
        name: dataclasses.replace(report, caller="172.16.0.1") for name, report in reports.items()
    }
    assert hosts.our_address(seen) == namespaces.here
    with (
        namespaces.eaten(at=namespaces.machines[1], source=namespaces.here),
        pytest.raises(ClusterError, match="cannot connect back to this machine at"),
    ):
        hosts.our_address(seen)


def test_a_port_of_this_machine_that_a_host_does_not_reach(namespaces: machines.Network) -> None:
    names = [Host(machine.name) for machine in namespaces.machines]
    reports = list(hosts.probe(names, None, 20.0).values())
    with socket.create_server((namespaces.here, 0)) as listener:
        addresses = [f"{namespaces.here}:{listener.getsockname()[1]}"]
        with namespaces.eaten(at=namespaces.machines[1], source=namespaces.here):
            failed = reach.unreachable(reports, [addresses] * 3, 1.0)
    assert failed == [{}, {addresses[0]: "timed out"}, {}]
    failed = reach.unreachable(reports, [addresses] * 3, 1.0)
    assert failed == [{addresses[0]: "Connection refused"}] * 3
