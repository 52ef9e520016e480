"""What a host said of itself, and whether it can take part."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mlxbench_kernel.cluster.probe import PACKAGES
from mlxbench_kernel.cluster.ssh import Failure

# These exchange objects and collectives with one another: they must be the same everywhere.
EQUAL = ("mlx", "mlxbench")


@dataclass(frozen=True)
class HostReport:
    """What a host said of itself (`probe.report`).

    Attributes
    ----------
    ssh
        Its name in the hostfile.
    local
        Whether it is this machine, reached without ssh.
    executable, python, home
        Path and version of the Python that was asked, and the user's home there.
    has_folder
        Whether the notebook's folder exists there too.
    caller
        Address of this machine as that host sees it (``SSH_CONNECTION``, ssh(1)).
    versions
        Of the packages named in `probe.PACKAGES`; "" where one is missing.
    backends
        MLX's backends that work there.
    hostname, system
        As the host calls itself, and its ``sys.platform``.
    nvidia
        Whether it has NVIDIA's driver.
    gpus
        Number of GPUs that MLX can use.
    mlx_error
        Why MLX does not load, "" where it does.
    addresses
        Its own addresses by interface, IPv4 with the width of the network: "10.0.0.2/24".
    details
        `probe.details`, where they were asked for.
    """

    ssh: str
    local: bool
    executable: str
    python: str
    home: str
    has_folder: bool
    caller: str
    versions: Mapping[str, str]
    backends: set[str]
    hostname: str = ""
    system: str = ""
    nvidia: bool = False
    gpus: int = 0
    mlx_error: str = ""
    addresses: Mapping[str, list[str]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return "this machine" if self.local else self.ssh


def unfit(report: HostReport) -> Failure | None:
    """What keeps a host from taking part, None for nothing."""
    here = platform.python_version()
    if report.python.split(".")[:2] != here.split(".")[:2]:
        cause = f"has Python {report.python} at {report.executable}, this notebook has {here}"
        return Failure(report.name, cause, "--python PATH names another one there")
    lacks = [name for name in PACKAGES if not report.versions[name]]
    others = [name for name in EQUAL if report.versions[name] not in ("", versions()[name])]
    causes = [f"lacks {', '.join(lacks)}"] if lacks else []
    causes += [
        f"has {name} {report.versions[name]} where this notebook has {versions()[name]}"
        for name in others
    ]
    if report.mlx_error:
        causes.append(f"has an MLX that does not load ({report.mlx_error})")
        others = [*dict.fromkeys([*others, "mlx"])]
    if not causes:
        return None
    # mlxbench brings the rest, but perhaps another MLX.
    command = _install(report, ["mlxbench", "mlx"] if "mlxbench" in lacks else lacks + others)
    return Failure(report.name, " and ".join(causes), f"on it, type {command}")


def _install(report: HostReport, names: list[str]) -> str:
    """The pip command that gives a host the packages that this notebook has."""
    wanted = [shlex.quote(_requirement(name, report)) for name in names]
    folder = f"cd COPY_OF_{_source_folder()}; " if "mlxbench" in names and _source_folder() else ""
    return f"{folder}{shlex.quote(report.executable)} -m pip install {' '.join(wanted)}"


def _requirement(name: str, report: HostReport) -> str:
    # On Linux MLX takes its backend from an extra, on macOS it needs none (pyproject.toml).
    extra = "" if report.system == "darwin" else "[cuda13]" if report.nvidia else "[cpu]"
    if name == "mlxbench" and _source_folder():
        return f".{extra}"
    return f"{name}{extra if name in ('mlx', 'mlxbench') else ''}=={versions()[name]}"


@cache
def _source_folder() -> str:
    """Name of the folder that mlxbench was installed from here, "" for a package index.

    ``direct_url.json``: PEP 610, in the PyPA specification "Recording the Direct URL Origin
    of installed distributions".
    """
    text = importlib.metadata.distribution("mlxbench").read_text("direct_url.json")
    url = json.loads(text)["url"] if text else ""
    return url.rstrip("/").rsplit("/", 1)[-1] if url.startswith("file:") else ""


@cache
def versions() -> dict[str, str]:
    """Versions of `probe.PACKAGES` here."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
