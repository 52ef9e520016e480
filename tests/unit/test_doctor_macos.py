"""What the doctor reads in macOS's answers. The answers are documented ones, none was made here.

- ``rdma_ctl status``, ``ibv_devices`` with devices: github.com/ml-explore/mlx issue 2944 of
  2025-12-21 (macOS 26.2, Mac mini M4 Pro), as Apple's TN3205; without: ml-explore/mlx issue 3777
  of 2026-06-29 and jundot/omlx issue 3037 of 2026-08-22 (Thunderbolt 4).
- ``networksetup -listallhardwareports``: superuser.com/questions/267660.
- ``ifconfig bridge0``: stackoverflow.com answer 55232331 (macOS 10.10).
- ``sysctl -n iogpu.wired_limit_mb``: 0 for the default, SceneWorks pull request 1949 of 2026-07-28
  (macOS 26.5.2).
All read 2026-11-23.
"""

from __future__ import annotations

import pytest

from mlxbench_kernel.cluster.doctor import macos
from mlxbench_kernel.cluster.doctor.finding import Finding

DEVICES = """\
    device          \t   node GUID
    ------          \t----------------
    rdma_en2        \t9016aXXX
    rdma_en3        \t9116aXXX
    rdma_en4        \t9216aXXX
"""
NO_DEVICES = """\
device              node GUID
------          ----------------
"""
PORTS = """\

Hardware Port: Ethernet
Device: en0
Ethernet Address: a8:20:66:31:95:57

Hardware Port: Wi-Fi
Device: en1
Ethernet Address: 8c:2d:aa:33:03:e9

Hardware Port: Thunderbolt 1
Device: en2
Ethernet Address: 32:00:1b:25:92:c0

Hardware Port: Thunderbolt 2
Device: en3
Ethernet Address: 32:00:1b:25:92:c1

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 32:00:1b:25:92:c0

VLAN Configurations
===================
"""
BRIDGE = """\
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\toptions=63<RXCSUM,TXCSUM,TSO4,TSO6>
\tether 66:76:ba:ea:38:00
\tConfiguration:
\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0
\t\tmaxage 0 holdcnt 0 proto stp maxaddr 100 timeout 1200
\t\troot id 0:0:0:0:0:0 priority 0 ifcost 0 port 0
\t\tipfilter disabled flags 0x2
\tmember: en2 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 5 priority 0 path cost 0
\tmember: en3 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 6 priority 0 path cost 0
\tnd6 options=1<PERFORMNUD>
\tmedia: <unknown type>
\tstatus: inactive
"""
GB = 10**9
READY = {"rdma": "enabled\n", "rdma_devices": DEVICES, "ports": PORTS, "bridge": None}


def test_the_answers_are_read() -> None:
    assert macos.parse_rdma("enabled\n") is True
    assert macos.parse_rdma("disabled\n") is False
    assert macos.parse_rdma(None) is None
    assert macos.parse_rdma_devices(DEVICES) == ["rdma_en2", "rdma_en3", "rdma_en4"]
    assert macos.parse_rdma_devices(NO_DEVICES) == []
    ports = macos.parse_hardware_ports(PORTS)
    assert ports["Thunderbolt 2"] == "en3" and ports["Wi-Fi"] == "en1"
    assert macos.parse_bridge(BRIDGE) == ["en2", "en3"]
    assert macos.parse_bridge(BRIDGE.replace("8863<UP,", "8862<")) == []
    assert macos.parse_wired_limit("0\n") == 0
    assert macos.parse_wired_limit("58000\n") == 58000 * 2**20


def found(
    texts: dict[str, str | None], wanted: set[str] = frozenset(), **ips: str
) -> dict[str, Finding]:
    """Findings by what they are about; `ips` is the interface of each address."""
    return {finding.what: finding for finding in macos.thunderbolt("mac-a", texts, wanted, ips)}


def test_a_mac_that_is_ready_for_jaccl() -> None:
    findings = found(READY, {"rdma_en3"})
    assert findings["RDMA"].good and findings["Thunderbolt Bridge"].good
    assert findings["Thunderbolt Bridge"].detail == "off; ports en2, en3"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rdma": "disabled\n", "rdma_devices": NO_DEVICES}, "not enabled"),
        ({"rdma_devices": NO_DEVICES}, "needs Thunderbolt 5 ports"),
        ({"rdma": None, "rdma_devices": None}, "needs 26.2"),
        ({}, "the hostfile names rdma_en9"),
    ],
)
def test_rdma_that_jaccl_cannot_use(changes: dict[str, str | None], says: str) -> None:
    finding = found({**READY, **changes}, {"rdma_en9"})["RDMA"]
    assert finding.good is False and says in finding.detail
    if changes:  # a ring over Ethernet needs none of it
        assert found({**READY, **changes})["RDMA"].good is None


def test_a_disabled_rdma_says_where_it_is_enabled() -> None:
    finding = found({**READY, "rdma": "disabled\n"}, {"rdma_en2"})["RDMA"]
    assert "Recovery" in finding.fix and finding.fix.endswith("rdma_ctl enable")


def test_the_bridge_is_in_the_way_of_single_ports_only() -> None:
    bridged = {**READY, "bridge": BRIDGE}
    finding = found(bridged, {"rdma_en3"})["Thunderbolt Bridge"]
    assert finding.good is False and "sudo ifconfig bridge0 down" in finding.fix
    assert found(bridged, **{"192.168.0.1": "en3"})["Thunderbolt Bridge"].good is False
    assert found(bridged, **{"169.254.7.9": "bridge0"})["Thunderbolt Bridge"].good is True
    assert found(bridged, **{"10.0.0.1": "en0"})["Thunderbolt Bridge"].good is None


@pytest.mark.parametrize(
    ("limit", "recommended", "good", "says", "fix"),
    [
        ("0\n", 96 * GB, None, "75 % of the pool (macOS's default)", "iogpu.wired_limit_mb=103759"),
        (None, None, None, "macOS's default", "iogpu.wired_limit_mb=103759"),
        ("110000\n", 115 * GB, True, "90 % of the pool, set by hand", ""),
        ("122000\n", 127 * GB, False, "macOS itself needs the rest", "iogpu.wired_limit_mb=0"),
        ("8192\n", 8 * GB, False, "less than macOS's default", "iogpu.wired_limit_mb=0"),
    ],
)
def test_how_much_the_gpu_may_hold(
    limit: str | None, recommended: int | None, good: bool | None, says: str, fix: str
) -> None:
    finding = macos.gpu_limit("mac-a", limit, 128 * GB, recommended)
    assert finding.good is good and says in finding.detail and finding.fix.endswith(fix)
