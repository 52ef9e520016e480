"""Pools, ranks and limits as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlxbench_kernel.memory import Grown, Holdings, freeable
from mlxbench_kernel.memory.limits import NAMES as LIMITS
from mlxbench_kernel.remote.lateness import how_late
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.remote.pool_bars import bars
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets.table import Table


def size(value: float | None) -> str:
    """Bytes for a person; what the system does not tell is unknown."""
    return "unknown" if value is None or math.isnan(value) else format_bytes(value)


def status(memory: Memory) -> Table:
    """A line for each rank, and the pools below."""
    rows = []
    for each in memory.feed.ranks:
        last = each.last
        held = [size(last.get(name)) for name in ("active", "cache", "peak", "footprint")]
        rows.append([str(each.rank), each.host, *held, how_late(each, short=True)])
    pools = [
        f"{bar.host} {bar.pool}: {size(bar.free)} of {size(bar.total)} free"
        + (f", pressure {bar.pressure}" if bar.pressure else "")
        + ("" if math.isnan(bar.swap) else f", swap {size(bar.swap)}")
        for bar in bars(memory.feed.ranks, memory.markers)
    ]
    if any(each.since is not None and each.how for each in memory.feed.ranks):
        pools.append("%mlx_dist heal brings ranks that died back")
    header = ("rank", "host", "MLX active", "MLX cache", "peak", "footprint", "")
    return Table(header, rows, " · ".join(pools))


def limits(memory: Memory) -> Table:
    """A line for each rank; of one that is gone as they were."""
    late = {each.rank: how_late(each, short=True) for each in list(memory.feed.ranks)}
    rows = [
        [str(rank), *(size(said[name]) for name in (*LIMITS, "cap")), late.get(rank, "")]
        for rank, said in sorted(memory.known_limits.copy().items())
    ]
    header = ("rank", "memory limit", "cache limit", "wired limit", "GPU cap", "")
    return Table(header, rows)


def freeable_table(found: Holdings) -> Table:
    """The ten variables that would free most if they were deleted."""
    rows = []
    for each in freeable(found):
        back = ", ".join(
            f"{format_bytes(size)} stay with {name}" for name, size in each.held_back.items()
        )
        rows.append([each.how, each.type, format_bytes(each.bytes), back])
    caption = "freed bytes become MLX's cache, until it is cleared"
    if not rows:
        caption = "no variable holds memory that nothing else holds"
    if kept := found.by_kind().get("snapshots", 0):
        half = max(1, kept // 2_000_000)
        caption += f"; kept states hold {format_bytes(kept)}: %mlx_step budget {half}MB keeps fewer"
    return Table(("to free most", "is", "frees", ""), rows, caption)


def grown_table(found: Sequence[Grown]) -> Table:
    """What grew, and what shrank, most growth first."""
    rows = [
        [
            each.path,
            each.kind,
            ("+" if each.bytes >= 0 else "") + format_bytes(each.bytes),
            f"{each.arrays:+d}" if each.arrays else "",
            f"{each.nodes:+d}" if each.nodes else "",
        ]
        for each in found
    ]
    caption = "" if rows else "nothing grew"
    return Table(("name", "kind", "bytes", "arrays", "graph nodes"), rows, caption)


def waiting(found: Holdings) -> str:
    """The variables with most that is not evaluated behind them, in a line; "" without any."""
    nodes = {
        label: count
        for label, parent, count in zip(found.labels, found.parents, found.nodes, strict=True)
        if parent < 0 and count
    }
    most = sorted(nodes.items(), key=lambda item: -item[1])[:5]
    told = ", ".join(f"{name} ({count:,} operations)" for name, count in most)
    return f"not evaluated yet: {told}" if told else ""
