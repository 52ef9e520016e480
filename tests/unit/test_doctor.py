"""What the doctor says of one host, from what the host said of itself."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from mlxbench_kernel.cluster import report
from mlxbench_kernel.cluster.doctor import Finding, one_host
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.cluster.report import HostReport

GB = 10**9
ROOMY = {"device": "Apple M4 Max", "memory": [64 * GB, 40 * GB, 48 * GB], "native": True}


def mac(**changes: Any) -> HostReport:
    """The report of a Mac in good order, but for the changes."""
    macos = {"rdma": None, "rdma_devices": None, "ports": "", "bridge": None, "wired_limit": "0\n"}
    values: dict[str, Any] = {
        "ssh": "mac-b", "local": False, "executable": "/opt/lab/bin/python",
        "python": platform.python_version(), "home": "/Users/ada", "has_folder": True,
        "caller": "10.0.0.9", "versions": report.versions(), "backends": {"ring", "jaccl"},
        "hostname": "mac-b.local", "system": "darwin", "gpus": 1,
        "addresses": {"en0": ["10.0.0.2/24", "fe80::2"], "lo0": ["127.0.0.1/8"]},
        "details": {**ROOMY, "compiler": "/usr/bin/c++", "macos": macos},
    }  # fmt: skip
    return HostReport(**{**values, **changes})


def found(said: HostReport, *ranks: Host, backend: str = "") -> dict[str, Finding]:
    entries = ranks or (Host("mac-b", ("10.0.0.2",)),)
    return {each.what: each for each in one_host.findings(said, entries, backend)}


def test_a_mac_in_good_order() -> None:
    findings = found(mac())
    assert [f.what for f in findings.values() if f.good is False] == []
    assert str(findings["ssh"]) == (
        "✓ mac-b          ssh                answers as mac-b.local, without a password"
    )
    assert findings["device"].detail == "1 GPU, Apple M4 Max"
    assert findings["memory"].detail == "40.0 GB of 64.0 GB free"
    assert findings["GPU memory limit"].detail == "75 % of the pool (macOS's default)"
    assert findings["addresses"].detail == "10.0.0.2 (en0)"


def test_little_free_memory() -> None:
    finding = found(mac(details={**ROOMY, "memory": [64 * GB, 3 * GB, None]}))["memory"]
    assert finding.good is False and finding.detail == "3.00 GB of 64.0 GB free"
    assert "Activity Monitor" in finding.fix


@pytest.mark.parametrize(
    ("system", "fix"), [("darwin", "xcode-select --install"), ("linux", "apt install g++")]
)
def test_no_compiler_is_said_but_is_not_bad(system: str, fix: str) -> None:
    details = {**ROOMY, "native": False, "compiler": ""}
    finding = found(mac(system=system, details=details))["native module"]
    assert finding.good is None and finding.fix == fix
    details = {**ROOMY, "native": False, "compiler": "/usr/bin/c++"}
    assert found(mac(details=details))["native module"].good


@pytest.mark.parametrize("backend", ["mpi", "nccl"])
def test_a_backend_that_is_wanted_and_not_there(backend: str) -> None:
    finding = found(mac(), backend=backend)["MLX backends"]
    assert finding.good is False and finding.detail == f"jaccl, ring; not {backend}"
    assert finding.fix
    assert found(mac(), backend="jaccl-ring")["MLX backends"].good


def test_more_ranks_than_gpus() -> None:
    said = mac(backends={"ring", "nccl"}, system="linux", gpus=1)
    ranks = [Host("mac-b", ("10.0.0.2",))] * 2
    finding = found(said, *ranks, backend="nccl")["MLX backends"]
    assert finding.good is False and "1 GPUs for 2 ranks" in finding.detail


def test_an_address_that_is_another_hosts() -> None:
    finding = found(mac(), Host("mac-b", ("10.0.0.2", "10.0.1.2:5000")))["addresses"]
    assert finding.good is False
    assert str(finding).endswith(
        "10.0.1.2:5000 is not an address of this host → in the hostfile: 10.0.0.2"
    )


def test_the_devices_of_jaccls_hostfile_are_looked_for() -> None:
    entry = Host("mac-b", ("10.0.0.2",), (None, "rdma_en2", ("rdma_en3", "rdma_en4")))
    texts = {"rdma": "enabled", "rdma_devices": "rdma_en2 x rdma_en3 x", "wired_limit": "0"}
    finding = found(mac(details={**ROOMY, "macos": texts}), entry, backend="jaccl")["RDMA"]
    assert finding.good is False and finding.detail.endswith("the hostfile names rdma_en4")
