"""``%mlx_dist doctor`` on real hosts: what is good, what is bad, and what to type."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import machines
import pytest

from mlxbench_kernel.cluster.doctor import Finding, examine
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.errors import UsageError


def hostfile(folder: Path, entries: Iterable[tuple[str, str]], backend: str = "ring") -> str:
    hosts = [{"ssh": name, "ips": [ip] if ip else []} for name, ip in entries]
    file = folder / "hosts.json"
    file.write_text(json.dumps({"backend": backend, "hosts": hosts}))
    return str(file)


def on(findings: Iterable[Finding], host: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings if finding.host == host}


def bad(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.host, finding.what) for finding in findings if finding.good is False]


def test_hosts_in_order_have_nothing_bad(namespaces: machines.Network) -> None:
    entries = [(machine.name, machine.ip) for machine in namespaces.machines]
    findings = list(examine(hostfile(namespaces.folder, entries)))
    assert bad(f for f in findings if f.what not in ("kernel", "memory")) == []
    for machine, neighbour in zip(
        namespaces.machines, [*namespaces.machines[1:], namespaces.machines[0]], strict=True
    ):
        found = on(findings, machine.name)
        assert {"ssh", "Python", "MLX backends", "memory", "addresses"} <= set(found)
        assert sys.executable in found["Python"].detail
        assert "ring" in found["MLX backends"].detail
        assert found["addresses"].detail == f"{machine.ip} (eth0)"
        assert f"reaches {neighbour.ip}:" in found[f"to {neighbour.name}"].detail
        assert f"reaches {namespaces.here}:" in found["to this machine"].detail
        for finding in found.values():
            assert "\n" not in str(finding)


def test_a_port_that_a_firewall_eats(namespaces: machines.Network) -> None:
    a, b, c = namespaces.machines
    entries = [(machine.name, machine.ip) for machine in (a, b, c)]
    with namespaces.eaten(at=a, source=c.ip):
        findings = list(examine(hostfile(namespaces.folder, entries)))
    assert bad(f for f in findings if f.what.startswith("to ")) == [(c.name, f"to {a.name}")]
    finding = on(findings, c.name)[f"to {a.name}"]
    assert f"cannot reach {a.ip}:" in finding.detail and "timed out" in finding.detail
    assert finding.fix == "look at the cable, the address in the hostfile and the firewall on mac-a"


def test_a_way_back_that_a_firewall_eats(namespaces: machines.Network) -> None:
    a, b, _ = namespaces.machines
    with namespaces.eaten(at=b, source=namespaces.here):
        findings = list(examine(hostfile(namespaces.folder, [(a.name, a.ip), (b.name, b.ip)])))
    ways = [f for f in findings if f.what == "to this machine"]
    assert {f.host: f.good for f in ways} == {a.name: True, b.name: False}
    assert "let Python through the firewall of this machine" in on(ways, b.name)[ways[0].what].fix


def test_a_wrong_address_and_a_host_that_is_off(namespaces: machines.Network) -> None:
    a, b, c = namespaces.machines
    namespaces.cut(c)
    wrong = b.ip.rsplit(".", 1)[0] + ".99"
    entries = [(a.name, a.ip), (b.name, wrong), (c.name, c.ip)]
    findings = list(examine(hostfile(namespaces.folder, entries)))
    assert on(findings, c.name)["ssh"].good is False
    assert len(on(findings, c.name)) == 1
    address = on(findings, b.name)["addresses"]
    assert address.detail == f"{wrong} is not an address of this host"
    assert address.fix == f"in the hostfile: {b.ip}"


def test_findings_come_while_a_slow_host_is_waited_for(sshd: machines.Sshd, tmp_path: Path) -> None:
    entries = [("silent", "127.0.0.1"), ("mac-a", "127.0.0.1")]
    order = [f.host for f in examine(hostfile(tmp_path, entries)) if f.what == "ssh"]
    assert order == ["mac-a", "silent"]


def test_a_host_that_refuses_the_key_and_a_backend_that_is_not_there(
    sshd: machines.Sshd, tmp_path: Path
) -> None:
    entries = [("mac-a", "127.0.0.1"), ("refused", "127.0.0.1")]
    findings = list(examine(hostfile(tmp_path, entries, "nccl")))
    assert str(on(findings, "refused")["ssh"]).split(" → ")[1] == "ssh-copy-id refused"
    backends = on(findings, "mac-a")["MLX backends"]
    assert backends.good is False and "not nccl" in backends.detail
    assert "mlx[cuda13]" in backends.fix


def test_a_python_that_lacks_things(sshd: machines.Sshd, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    file = hostfile(tmp_path, [("mac-a", "127.0.0.1")])
    found = on(examine(file, str(python)), "mac-a")
    assert found["Python"].good is False and found["Python"].detail.startswith("lacks mlx, ")
    assert "-m pip install" in found["Python"].fix
    assert "MLX backends" not in found


def test_a_hostfile_that_ring_cannot_use(sshd: machines.Sshd, tmp_path: Path) -> None:
    findings = list(examine(hostfile(tmp_path, [("mac-a", "127.0.0.1"), ("mac-b", "")])))
    assert on(findings, "this machine")["hostfile"].good is False
    assert on(findings, "mac-b")["ssh"].good  # what can be looked at, is
    assert not any(f.what == "to mac-a" for f in findings)


def test_a_hostfile_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        list(examine(str(tmp_path / "hosts.json")))


def test_this_machine_alone() -> None:
    findings = list(examine())
    assert {finding.host for finding in findings} == {"this machine"}
    found = on(findings, "this machine")
    assert {"kernel", "Python", "MLX backends", "device", "memory", "native module"} <= set(found)
    assert "ssh" not in found and Host("127.0.0.1").is_local
