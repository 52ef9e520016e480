"""What is known of a cluster and its ranks, and the folder that keeps it on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from jupyter_core.paths import jupyter_runtime_dir

from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.memory import MemorySample
from mlxbench_kernel.rank import files
from mlxbench_kernel.rank.lifetime import alive

ELSEWHERE = "make room there, or set JUPYTER_RUNTIME_DIR to a folder where you can write"
SILENT = "silent for"
STARTING_SECONDS = 600.0  # after which a folder without a description was left by a start


@dataclass(frozen=True)
class RankInfo:
    """One rank, as the table of ranks shows it.

    Attributes
    ----------
    rank, host, pid
        Its number, the name of its host, its process there.
    device, mlx
        MLX's default device with its name, and MLX's version.
    memory
        The last sample, None when the rank did not answer.
    state
        "idle", "gone", "silent for 7 s (mac-b)" where its host or the network to it does not
        answer, or what it is doing: "busy 12 s · line 3: mx.eval(loss)".
    """

    rank: int
    host: str
    pid: int
    device: str
    mlx: str
    memory: MemorySample | None = None
    state: str = "idle"


@dataclass(frozen=True)
class Options:
    """How a cluster was asked for: the arguments of `Cluster.up`, kept for a restart."""

    n: int | None = None
    hostfile: str | None = None
    backend: str = ""
    env: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    timeout: float = 60.0
    keep: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class ClusterInfo:
    """A cluster that runs on this machine, as its folder describes it.

    Attributes
    ----------
    id, size, backend, seed
        Its name, the number of ranks, their backend and random seed.
    folder
        The notebook's folder, where the ranks started.
    options
        How it was asked for.
    owner, owner_started
        Process id of the notebook's kernel, and when that was started (Unix time).
    ranks
        Identity of each rank: host, pid, device, MLX version.
    notes
        What a person should know: modules copied, no native module.
    hosts
        Where each rank is, as in the hostfile.
    renewable
        Whether the group can be made anew in the living processes.
    engines
        Engine id of each rank where ranks were dropped; else empty.
    """

    id: str
    size: int
    backend: str
    seed: int
    folder: str
    options: Options
    owner: int
    owner_started: float
    ranks: tuple[RankInfo, ...]
    notes: tuple[str, ...]
    hosts: tuple[Host, ...] = ()
    renewable: bool = False
    engines: tuple[int, ...] = ()

    @property
    def owner_alive(self) -> bool:
        """Whether the kernel that holds it still runs."""
        return alive(self.owner, self.owner_started)

    @property
    def home(self) -> Path:
        """Folder with the cluster's connection files and logs; only its user may read it."""
        return clusters_folder() / self.id

    def save(self) -> None:
        """Write the description to the cluster's folder.

        Raises
        ------
        StorageError
            It cannot be written; the former one is still there.
        """
        text = json.dumps(dataclasses.asdict(self))
        files.write_text(self.home / "cluster.json", text, ELSEWHERE)

    @classmethod
    def load(cls, home: Path) -> ClusterInfo:
        """Read the description from a cluster's folder.

        Raises
        ------
        OSError, ValueError
            There is none, or it is not complete.
        """
        data = json.loads((home / "cluster.json").read_text())
        data["options"] = Options(**data["options"])
        data["ranks"] = tuple(RankInfo(**{**rank, "memory": None}) for rank in data["ranks"])
        data["hosts"] = tuple(
            Host(host["ssh"], tuple(host["ips"]), _as_tuples(host["rdma"]))
            for host in data["hosts"]
        )
        data["engines"] = tuple(data["engines"])
        data["notes"] = tuple(data["notes"])
        return cls(**data)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(each) for each in value) if isinstance(value, list) else value


def clusters_folder() -> Path:
    """Folder with one private folder per cluster of this user."""
    return Path(jupyter_runtime_dir()) / "mlxbench"


def new_home() -> Path:
    """Make the folder of a new cluster (mode 0700); its name is the cluster's id.

    Raises
    ------
    StorageError
        It cannot be made, or not much can be written there; nothing of it is left.
    """
    while True:
        home = clusters_folder() / f"mlx-{secrets.token_hex(3)}"
        try:
            home.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            told = files.explain(error, home, ELSEWHERE)
            if told is not None:
                raise told from None
            raise
        try:
            files.require_room(home, ELSEWHERE)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        return home


def running() -> Iterator[ClusterInfo]:
    """The clusters of this user on this machine.

    Folders of dead ones are removed. One whose controller alone is dead can be brought back.
    """
    for home in sorted(clusters_folder().glob("mlx-*")):
        try:
            info = ClusterInfo.load(home)
        except (OSError, ValueError, TypeError):
            if not controller_lives(home) and _age(home) > STARTING_SECONDS:
                shutil.rmtree(home, ignore_errors=True)
            continue  # is starting
        if controller_lives(home) or info.owner_alive or _has_kept_ranks(info):
            yield info
        else:
            shutil.rmtree(home, ignore_errors=True)


def _age(home: Path) -> float:
    """Seconds since the folder was last changed."""
    try:
        return time.time() - home.stat().st_mtime
    except OSError:  # it was just removed
        return 0.0


def note_controller(home: Path, pid: int) -> None:
    """Keep in a cluster's folder which process its controller is."""
    files.write_text(home / "controller", f"{pid} {process_started(pid)}", ELSEWHERE)


def controller_lives(home: Path) -> bool:
    """Whether the controller of the cluster in a folder still runs."""
    try:
        pid, started = (home / "controller").read_text().split()
    except (OSError, ValueError):
        return False
    return alive(int(pid), float(started))  # after a restart another process may have the number


def _has_kept_ranks(info: ClusterInfo) -> bool:
    """Whether ranks may still live that a notebook or a controller does not hold."""
    if not info.options.keep:
        return False
    if info.options.hostfile is not None:
        return True  # on other hosts: attaching finds out
    return any(_is_rank(rank.pid, info.home) for rank in info.ranks)


def _is_rank(pid: int, home: Path) -> bool:
    try:
        return any(str(home) in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def process_started(pid: int | None = None) -> float:
    """When a process (this one by default) was started, Unix time."""
    return float(psutil.Process(pid or os.getpid()).create_time())
