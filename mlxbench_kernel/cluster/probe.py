"""What a host says of itself. Its source is sent over ssh: the standard library only.

It has to run under an old Python too, which then says that it is one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys

MARK = "mlxbench-probe:"
PACKAGES = ("mlx", "mlxbench", "ipyparallel", "ipykernel")
MACOS_COMMANDS = {
    "rdma": ("rdma_ctl", "status"),
    "rdma_devices": ("ibv_devices",),
    "ports": ("networksetup", "-listallhardwareports"),
    "bridge": ("ifconfig", "bridge0"),
    "wired_limit": ("sysctl", "-n", "iogpu.wired_limit_mb"),
}


def report(folder: str) -> dict[str, object]:
    """Versions, backends and GPUs of this host.

    Parameters
    ----------
    folder
        The notebook's folder; whether it exists here too is reported.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    found, gpus, error = mlx() if versions["mlx"] else ([], 0, "")
    return {
        "executable": sys.executable,
        "python": platform.python_version(),
        "home": os.path.expanduser("~"),
        "has_folder": bool(folder) and os.path.isdir(folder),
        "caller": os.environ.get("SSH_CONNECTION", "").split(" ")[0],
        "versions": versions,
        "backends": found,
        "hostname": platform.node(),
        "system": sys.platform,
        "nvidia": os.path.exists("/proc/driver/nvidia"),
        "gpus": gpus,
        "mlx_error": error,
    }


def mlx() -> tuple[list[str], int, str]:
    """Backends that MLX has here and this host can use, its GPUs, and why MLX does not load."""
    import ctypes.util
    import shutil

    try:
        import mlx.core as mx
    except Exception as error:  # whatever a broken installation raises
        return [], 0, str(error).splitlines()[0] if str(error) else type(error).__name__
    there = [name for name in ("ring", "jaccl", "nccl") if mx.distributed.is_available(name)]
    if shutil.which("mpirun") and ctypes.util.find_library("mpi"):
        there.append("mpi")
    return there, mx.device_count(mx.gpu) if mx.is_available(mx.gpu) else 0, ""


def addresses() -> dict[str, list[str]]:
    """Addresses of this host with the width of their network ("10.0.0.1/24"), by interface."""
    import ipaddress
    import socket

    try:
        import psutil
    except ImportError:  # as mlxbench then is
        return {}
    found: dict[str, list[str]] = {}
    for interface, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET:
                network = ipaddress.ip_network((entry.address, entry.netmask or 32), strict=False)
                address = f"{entry.address}/{network.prefixlen}"
                found.setdefault(interface, []).append(address)
            elif entry.family == socket.AF_INET6:
                found.setdefault(interface, []).append(entry.address.split("%")[0])
    return found


def details() -> dict[str, object]:
    """What only the doctor asks for, as it takes longer: device, memory, compiler, macOS."""
    import shutil

    found: dict[str, object] = {"device": "", "memory": None, "native": False}
    try:
        import mlx.core as mx

        found["device"] = mx.device_info(mx.default_device()).get("device_name", "")
        from mlxbench_kernel.memory import sample

        memory = sample()
        found["memory"] = [memory.total, memory.available, memory.limit]
        from mlxbench_kernel import native

        found["native"] = native.ready()
    except Exception as error:  # another version of it, or none: said elsewhere
        found["error"] = str(error)
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    found["compiler"] = next(filter(None, map(shutil.which, filter(None, names))), "")
    if sys.platform == "darwin":
        found["macos"] = {name: output(command) for name, command in MACOS_COMMANDS.items()}
        if not output(("xcode-select", "-p")):
            found["compiler"] = ""  # /usr/bin/c++ is a placeholder then
    return found


def output(command: tuple[str, ...]) -> str | None:
    """What a command writes; None where there is no such command, or it fails."""
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


if __name__ == "__main__":
    said = report(sys.argv[1])
    said["addresses"] = addresses()
    if sys.argv[2] == "details":
        said["details"] = details()
    print(MARK + json.dumps(said))
