"""Limits that Linux's control groups put on memory, as a container or Slurm sets them.

Formats: cgroups(7), proc_pid_mountinfo(5), and the kernel's ``admin-guide/cgroup-v2.rst`` and
``admin-guide/cgroup-v1/memory.rst``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlxbench_kernel.memory.host import read

# Names of limit, use, and (in memory.stat) file pages that the kernel drops first.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V1_BOTH = ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes")


def folders(groups: str, mountinfo: str) -> list[Path]:
    """Folders of the control groups that limit the memory of a process, its own first.

    Parameters
    ----------
    groups
        Text of ``/proc/PID/cgroup``.
    mountinfo
        Text of ``/proc/PID/mountinfo``.

    Returns
    -------
    list of Path
        From the process's own group up to the highest that can be seen; empty without any.
    """
    # Version 2's line names no controllers. Where version 1 has the memory controller, version 2
    # has no memory files.
    paths = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = PurePosixPath(path)
    kind, controller = ("cgroup", "memory") if "memory" in paths else ("cgroup2", "")
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        filesystem, _, options = right.split()[:3]
        if filesystem == kind and (not controller or controller in options.split(",")):
            group = paths.get(controller, PurePosixPath(root))
            # A container may see its own group as the top, whatever its path is outside.
            inner = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
            own = Path(mount) / inner
            return [own, *(own.parents[i] for i in range(len(inner.parts)))]
    return []


@dataclass(frozen=True)
class Confined:
    """A host's memory as far as control groups let a process have it.

    Attributes
    ----------
    total, available
        In bytes.
    group
        The group whose limit is the total; None where no limit is below the host's memory.
    stat
        Of that group, see `stat`; empty where there is none.
    """

    total: int
    available: int
    group: Path | None
    stat: Mapping[str, int]


def confine(total: int, available: int, groups: Sequence[Path]) -> Confined:
    """What a process can have of its host's memory.

    Parameters
    ----------
    total, available
        Of the host, in bytes.
    groups
        As from `folders`; every one of them has to hold.
    """
    host = total
    tightest: tuple[Path | None, Mapping[str, int]] = (None, {})
    for group in groups:
        for limit_name, used_name, droppable_name in (V2, V1):
            limit = number(group / limit_name)
            if limit is None or limit >= host:
                continue
            used = number(group / used_name)
            if used is None:
                continue
            counts = stat(group)
            if limit < total:
                total, tightest = limit, (group, counts)
            free = limit - used + counts.get(droppable_name, 0)
            available = min(available, max(0, free))
    return Confined(total, available, *tightest)


def kernel(counts: Mapping[str, int]) -> int | None:
    """Bytes that the kernel holds for a group and cannot give up; None in version 1.

    ``kernel`` of `stat` (since Linux 5.18) is stacks, page tables, per-cpu, vmalloc and slab;
    ``slab_reclaimable`` of it is dropped when memory runs short. Version 1 counts what is
    reclaimable in.
    """
    if "kernel" not in counts:
        return None
    return max(0, counts["kernel"] - counts.get("slab_reclaimable", 0))


def swap(group: Path, total: int | None) -> tuple[int | None, int | None]:
    """Used and total bytes of swap for a group, on a host with `total` bytes of it.

    Version 2 has files of swap alone; version 1 counts memory and swap together (``memsw``),
    and only where the kernel was told to.
    """
    used = number(group / "memory.swap.current")
    if used is not None:
        limit = number(group / "memory.swap.max")  # None: "max"
    else:
        both, memory = number(group / V1_BOTH[1]), number(group / V1[1])
        if both is None or memory is None:
            return None, None
        used = max(0, both - memory)
        most, memory_limit = number(group / V1_BOTH[0]), number(group / V1[0])
        limit = None if most is None or memory_limit is None else max(0, most - memory_limit)
    if total is None or limit is None:
        return used, total
    return used, min(limit, total)


def oom_kills(groups: Sequence[Path]) -> dict[str, int]:
    """How many processes the system has ended for memory, as far as it counts that.

    Parameters
    ----------
    groups
        As from `folders`. Only the process's own counts: those above count others' ends too.

    Returns
    -------
    dict
        ``oom_kill`` of ``memory.events`` (version 2; that of groups below is in it) or of
        ``memory.oom_control`` (version 1) by the group's folder; empty where there is none.
    """
    for group in groups[:1]:
        for name in ("memory.events", "memory.oom_control"):
            text = read(group / name)
            if text is None:  # the other version, or the top group of version 2, which has none
                continue
            counts = dict(line.split() for line in text.splitlines())
            if "oom_kill" in counts:  # version 1 has it since Linux 4.13
                return {str(group): int(counts["oom_kill"])}
    return {}


def number(path: Path) -> int | None:
    """The number in a file; None where there is no such file or it says ``max``."""
    text = read(path)  # the top group has no such file
    return int(text) if text and text.strip().isdecimal() else None


def stat(group: Path) -> dict[str, int]:
    """``memory.stat`` of a group: bytes and counts by name; empty where there is none."""
    lines = (read(group / "memory.stat") or "").splitlines()
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}
