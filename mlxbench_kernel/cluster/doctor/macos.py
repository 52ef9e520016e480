"""What macOS says about RDMA, Thunderbolt and the GPU's share of memory.

The commands are those that ``mlx.distributed_config`` asks (MLX 0.32.4,
``mlx/_distributed_utils/config.py``) and Apple's TN3205, "Low-latency communication with RDMA
over Thunderbolt" (read 2026-11-23). Only their texts are read here; not run on a Mac.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from mlxbench_kernel.cluster.doctor.finding import Finding

MB = 2**20
CONFIGURE = "mlx.distributed_config --over thunderbolt --backend jaccl --auto-setup --hosts …"


def parse_rdma(text: str | None) -> bool | None:
    """Whether ``rdma_ctl status`` says "enabled"; None where there is no such command."""
    return None if text is None else text.strip().lower() == "enabled"


def parse_rdma_devices(text: str | None) -> list[str]:
    """Names of the devices that ``ibv_devices`` lists, as ``rdma_en2``."""
    return [word for word in (text or "").split() if word.startswith("rdma_")]


def parse_hardware_ports(text: str | None) -> dict[str, str]:
    """Device by name of the port, from ``networksetup -listallhardwareports``."""
    pairs = re.findall(r"^Hardware Port: (.+)\nDevice: (\S+)", text or "", re.M)
    return {name.strip(): device for name, device in pairs}


def parse_bridge(text: str | None) -> list[str]:
    """Members of a bridge that is up, from ``ifconfig bridge0``; none where it is down."""
    if not re.search(r"^bridge0: flags=\w+<(?:\w+,)*UP[,>]", text or "", re.M):
        return []
    return re.findall(r"^\s*member: (\S+)", text or "", re.M)


def parse_wired_limit(text: str | None) -> int:
    """Bytes that ``sysctl -n iogpu.wired_limit_mb`` allows the GPU; 0 for macOS's default."""
    return int(text) * MB if text and text.strip().isdigit() else 0


def thunderbolt(
    host: str,
    texts: Mapping[str, str | None],
    wanted: set[str],
    ips: Mapping[str, str],
) -> Iterator[Finding]:
    """Findings on RDMA and on the Thunderbolt Bridge of a Mac.

    Parameters
    ----------
    host
        How findings call it.
    texts
        What the commands said, by the names in `probe.MACOS_COMMANDS`.
    wanted
        RDMA devices that the hostfile names for this host; empty where none is needed.
    ips
        The hostfile's addresses of this host, with the interface that has each.
    """
    yield _rdma(host, texts, wanted)
    ports = parse_hardware_ports(texts.get("ports"))
    members = parse_bridge(texts.get("bridge"))
    wired = sorted(
        device for name, device in ports.items() if re.fullmatch(r"Thunderbolt \d+", name)
    )
    if not members:
        detail = f"off; ports {', '.join(wired)}" if wired else "this Mac has no Thunderbolt ports"
        yield Finding(host, "Thunderbolt Bridge", True if wired else None, detail)
        return
    on_bridge = [ip for ip, interface in ips.items() if interface == "bridge0"]
    in_the_way = bool(wanted) or any(interface in members for interface in ips.values())
    detail = f"bridge0 joins {', '.join(members)}"
    if in_the_way:
        fix = f"on {host}, sudo ifconfig bridge0 down; {CONFIGURE} does that for all"
        yield Finding(host, "Thunderbolt Bridge", False, f"{detail}: ranks need them single", fix)
    elif on_bridge:
        yield Finding(host, "Thunderbolt Bridge", True, f"{detail} and has {', '.join(on_bridge)}")
    else:
        yield Finding(host, "Thunderbolt Bridge", None, f"{detail}; fine unless jaccl is wanted")


def _rdma(host: str, texts: Mapping[str, str | None], wanted: set[str]) -> Finding:
    enabled = parse_rdma(texts.get("rdma"))
    devices = parse_rdma_devices(texts.get("rdma_devices"))
    bad = False if wanted else None
    if enabled is None and not devices:
        return Finding(host, "RDMA", bad, "not in this macOS: jaccl needs 26.2 and Thunderbolt 5")
    if enabled is False:
        fix = "in macOS Recovery (hold the power button at start), Terminal: rdma_ctl enable"
        return Finding(host, "RDMA", bad, "not enabled, which jaccl needs", fix)
    if not devices:
        detail = "enabled, but there is no device: it needs Thunderbolt 5 ports"
        return Finding(host, "RDMA", bad, detail)
    missing = sorted(wanted - set(devices))
    if missing:
        detail = f"has {', '.join(devices)}, but the hostfile names {', '.join(missing)}"
        return Finding(host, "RDMA", False, detail, CONFIGURE)
    return Finding(host, "RDMA", True, f"enabled: {', '.join(devices)}")


def gpu_limit(host: str, text: str | None, total: int, recommended: int | None) -> Finding:
    """Finding on how much of the unified pool the GPU may hold.

    Parameters
    ----------
    host
        How the finding calls it.
    text
        What ``sysctl -n iogpu.wired_limit_mb`` said.
    total
        Bytes of the pool.
    recommended
        Metal's recommended working set in bytes, which follows the limit.
    """
    limit = parse_wired_limit(text)
    what = "GPU memory limit"
    percent = round(100 * (limit or recommended or 0) / total) if total else 0
    if not limit:
        most = f"{percent} % of the pool (macOS's default)" if percent else "macOS's default"
        megabytes = int(0.85 * total) // MB
        fix = f"for larger models, on {host}: sudo sysctl iogpu.wired_limit_mb={megabytes}"
        return Finding(host, what, None, most, fix)
    if 50 <= percent <= 95:
        return Finding(host, what, True, f"{percent} % of the pool, set by hand until restart")
    reason = "macOS itself needs the rest" if percent > 95 else "less than macOS's default"
    fix = f"on {host}: sudo sysctl iogpu.wired_limit_mb=0"
    return Finding(host, what, False, f"{percent} % of the pool: {reason}", fix)
