"""Why a host could not be asked: one line that names it, the cause and what to type.

The messages are those of OpenSSH 9.2 (``sshconnect.c``, ``sshconnect2.c``), with the reasons that
connect(2) and getaddrinfo(3) give on Linux and on macOS.
"""

import importlib.metadata
import sys

import pytest

from mlxbench_kernel.cluster import hosts, probe, report
from mlxbench_kernel.cluster.report import HostReport, unfit
from mlxbench_kernel.cluster.ssh import Answer, Call, explain, ssh_command
from mlxbench_kernel.errors import ClusterError

PYTHON = "/opt/lab/.venv/bin/python"
CHANGED_KEY = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Offending ED25519 key in /home/ada/.ssh/known_hosts:7
Host key for mac-b has changed and you have requested strict checking.
Host key verification failed.
"""


def failure(name, python, code, stderr, local=False):
    """What a user reads after a call that ended so."""
    return str(explain(Call(name, local, python, ""), Answer(code, "", stderr)))


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        (
            "ada@mac-b: Permission denied (publickey,password,keyboard-interactive).",
            "refuses the key: ssh-copy-id mac-b",
        ),
        (
            "No ED25519 host key is known for mac-b and you have requested strict checking.\n"
            "Host key verification failed.",
            "is not known yet: ssh mac-b once",
        ),
        (CHANGED_KEY, "has another key than before: if that is right, ssh-keygen -R mac-b"),
        (
            "ssh: Could not resolve hostname mac-b: Name or service not known",
            "is not a name that can be found: look at the hostfile",
        ),
        (
            "ssh: Could not resolve hostname mac-b: nodename nor servname provided, or not known",
            "is not a name that can be found",
        ),
        ("ssh: connect to host mac-b port 22: Connection refused", "turn Remote Login on"),
        ("ssh: connect to host mac-b port 22: Connection timed out", "is it awake"),
        ("ssh: connect to host mac-b port 22: Operation timed out", "is it awake"),
        ("ssh: connect to host mac-b port 22: No route to host", "is it awake"),
        ("Connection closed by 10.0.0.2 port 22", "ssh failed: Connection closed by 10.0.0.2"),
        ("", "ssh failed: no reason given"),
    ],
)
def test_ssh_itself_fails(stderr, says):
    message = failure("mac-b", PYTHON, 255, stderr + "\r\n")
    assert message.startswith("mac-b")
    assert says in message
    assert "\n" not in message and "\r" not in message


def test_the_host_has_no_python_there():
    for code in (126, 127):
        message = failure("mac-b", PYTHON, code, f"bash: line 1: {PYTHON}: No such file")
        assert (
            message == f"mac-b has no Python at {PYTHON}: --python PATH names the one to use there"
        )


def test_python_itself_fails_with_its_last_line():
    stderr = (
        "Warning: Permanently added 'mac-b'\nTraceback (most recent call last):\n"
        "ModuleNotFoundError: No module named 'json'\n"
    )
    message = failure("mac-b", PYTHON, 1, stderr)
    assert message == f"mac-b: {PYTHON} failed: ModuleNotFoundError: No module named 'json'"
    # What the remote command says about permissions is not about ssh's key.
    assert "ssh-copy-id" not in failure("mac-b", PYTHON, 1, "Permission denied")


def test_ssh_never_asks_and_takes_no_name_for_an_option():
    command = ssh_command("-oProxyCommand=x", "python3 -")
    assert command[0] == "ssh" and "BatchMode=yes" in command
    assert command[-3:] == ["--", "-oProxyCommand=x", "python3 -"]


def test_other_shells_say_in_their_own_way_that_there_is_no_python():
    for code, said in (
        (1, f"{PYTHON}: Command not found."),  # tcsh 6
        (127, f"fish: Unknown command: {PYTHON}"),
        (1, f"zsh:1: no such file or directory: {PYTHON}".replace("no such", "No such")),
    ):
        assert "has no Python at" in failure("mac-b", PYTHON, code, said)


def test_a_program_that_is_killed_or_does_not_start():
    assert failure("mac-b", PYTHON, -9, "") == f"mac-b: {PYTHON} failed: signal 9"
    here = failure("127.0.0.1", "/bad", None, "/bad: Exec format error", local=True)
    assert here == "this machine: cannot start /bad: Exec format error"
    assert "does not answer" in failure("mac-b", PYTHON, None, "timed out")


def said(ssh="mac-b", **changes):
    """A report of a host that has what this machine has, but for the changes."""
    values = {
        "local": False, "executable": PYTHON, "python": ".".join(map(str, sys.version_info[:3])),
        "home": "/Users/ada", "has_folder": True, "caller": "10.0.0.9",
        "versions": dict(report.versions()), "backends": {"ring"}, "system": "darwin",
    }  # fmt: skip
    return HostReport(ssh, **{**values, **changes})


@pytest.fixture
def from_index(monkeypatch):
    """mlxbench was installed from a package index."""
    monkeypatch.setattr(report, "_source_folder", lambda: "")


def test_a_host_that_has_what_this_machine_has():
    assert unfit(said()) is None


def test_packages_that_a_host_lacks_or_has_in_another_version(from_index):
    ours = report.versions()
    lacks = said(versions={**ours, "ipyparallel": "", "mlx": "0.30.0"})
    assert str(unfit(lacks)) == (
        f"mac-b lacks ipyparallel and has mlx 0.30.0 where this notebook has {ours['mlx']}: "
        f"on it, type {PYTHON} -m pip install ipyparallel=={ours['ipyparallel']} "
        f"mlx=={ours['mlx']}"
    )


def test_pip_is_told_what_mlx_needs_on_linux(from_index):
    ours = report.versions()
    without = {**ours, "mlx": ""}
    assert f"'mlx[cpu]=={ours['mlx']}'" in unfit(said(system="linux", versions=without)).fix
    with_gpu = said(system="linux", nvidia=True, versions=without)
    assert f"'mlx[cuda13]=={ours['mlx']}'" in unfit(with_gpu).fix


def test_mlxbench_that_came_from_a_folder_is_installed_from_a_copy_of_it(monkeypatch):
    monkeypatch.setattr(report, "_source_folder", lambda: "bench")
    fix = unfit(said(versions=dict.fromkeys(probe.PACKAGES, ""))).fix
    assert fix == (
        f"on it, type cd COPY_OF_bench; {PYTHON} -m pip install . mlx=={report.versions()['mlx']}"
    )


def test_this_mlxbench_knows_where_it_came_from():
    text = importlib.metadata.distribution("mlxbench").read_text("direct_url.json") or ""
    assert bool(report._source_folder()) == ('"file:' in text)


def test_the_controller_listens_where_the_hosts_see_this_machine(monkeypatch):
    own = {"lo": ["127.0.0.1/8", "::1"], "en0": ["10.0.0.9/24"], "en1": ["10.0.1.9/24"]}
    monkeypatch.setattr(probe, "addresses", lambda: own)
    here = said("127.0.0.1", local=True, caller="")
    b, c = said("b", caller="10.0.0.9"), said("c", caller="10.0.0.9")
    alias = said("alias", caller="127.0.0.1")
    assert hosts.our_address({"127.0.0.1": here}) == ""
    assert hosts.our_address({"127.0.0.1": here, "b": b, "c": c}) == "10.0.0.9"
    assert hosts.our_address({"alias": alias}) == "127.0.0.1"
    assert hosts.our_address({"alias": alias, "b": b}) == "10.0.0.9"


@pytest.mark.parametrize(
    ("callers", "order"),
    [
        # Hosts on two networks: what they see is tried first.
        (("192.168.1.9", "10.0.0.9"), ["10.0.0.9", "192.168.1.9", "10.0.1.9"]),
        # A jump host, NAT or IPv6 lies between: then the networks that a host is on.
        (("172.16.0.1", "172.16.0.1"), ["10.0.1.9", "10.0.0.9", "192.168.1.9"]),
        (("fe80::1c2d%en0", "fe80::1c2d%en0"), ["10.0.1.9", "10.0.0.9", "192.168.1.9"]),
    ],
)
def test_an_address_that_all_hosts_reach_is_looked_for(monkeypatch, callers, order):
    own = {"en0": ["10.0.0.9/24"], "en1": ["10.0.1.9/24"], "en2": ["192.168.1.9/24", "fe80::9"]}
    monkeypatch.setattr(probe, "addresses", lambda: own)
    tried = []
    monkeypatch.setattr(hosts, "_first_reached", lambda remote, ips: tried.append(ips))
    there = {"en0": ["10.0.1.3/24", "fe80::3"]}
    b, c = (said(name, caller=ip, addresses=there) for name, ip in zip("bc", callers, strict=True))
    with pytest.raises(ClusterError, match="b, c cannot connect back to this machine at 10"):
        hosts.our_address({"b": b, "c": c})
    assert tried == [order]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        # As Python ends a traceback; the texts are strerror's on Linux and on macOS.
        (
            "OSError: [Errno 28] No space left on device: '/home/ada/rank.log'",
            "mac-b cannot write /home/ada/rank.log, the disk is full: make room there",
        ),
        ("OSError: [Errno 28] No space left on device", "cannot write a file, the disk is full"),
        (
            "[Errno 30] Read-only file system: '/home/ada/.cache/mlxbench'",
            "mac-b cannot write /home/ada/.cache/mlxbench, the disk is read-only: name a folder",
        ),
        ("PermissionError: [Errno 13] Permission denied: '/x'", "/x, you may not write there"),
        ("ValueError: [Errno 28] of something else", "failed: ValueError: [Errno 28] of something"),
    ],
)
def test_a_disk_that_takes_nothing_is_told_from_other_failures(line, says):
    assert says in failure("mac-b", PYTHON, 1, f"Traceback (most recent call last):\n{line}\n")
