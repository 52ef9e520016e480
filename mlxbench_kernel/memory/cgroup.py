"""Limits that Linux's control groups put on memory, as a container or Slurm sets them.

Formats: cgroups(7), proc_pid_mountinfo(5), and the kernel's ``admin-guide/cgroup-v2.rst`` and
``admin-guide/cgroup-v1/memory.rst``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

# Names of limit, use, and (in memory.stat) file pages that the kernel drops first.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


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


def confine(total: int, available: int, groups: list[Path]) -> tuple[int, int]:
    """Total and available bytes of a host, as far as the control groups let a process have them.

    Parameters
    ----------
    total, available
        Of the host, in bytes.
    groups
        As from `folders`; every one of them has to hold.
    """
    host = total
    for group in groups:
        for limit_name, used_name, droppable_name in (V2, V1):
            limit = _number(group / limit_name)
            used = _number(group / used_name)
            if limit is None or used is None or limit >= host:
                continue
            total = min(total, limit)
            free = limit - used + _droppable(group, droppable_name)
            available = min(available, max(0, free))
    return total, available


def oom_kills(groups: list[Path]) -> dict[str, int]:
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
            try:
                text = (group / name).read_text()
            except OSError:  # the other version, or the top group of version 2, which has none
                continue
            counts = dict(line.split() for line in text.splitlines())
            if "oom_kill" in counts:  # version 1 has it since Linux 4.13
                return {str(group): int(counts["oom_kill"])}
    return {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # the top group has no such file, or it says "max"
        return None


def _droppable(group: Path, name: str) -> int:
    """File pages of the group that are given up before anything is refused, in bytes."""
    for line in (group / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
