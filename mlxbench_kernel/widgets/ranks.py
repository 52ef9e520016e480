"""The table of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxbench_kernel.widgets.table import Table

if TYPE_CHECKING:
    from mlxbench_kernel.cluster import ClusterInfo, RankInfo
    from mlxbench_kernel.memory import MemorySample


class RanksTable(Table):
    """One line per rank: where it lives, on what it computes, what it holds.

    Parameters
    ----------
    ranks
        The ranks, in order.
    info
        Their cluster, for the caption.
    states
        Whether to show what each rank is doing.
    """

    def __init__(self, ranks: Sequence[RankInfo], info: ClusterInfo, states: bool = False) -> None:
        header = ["rank", "host", "pid", "device", "MLX", "memory"]
        rows = [
            [
                str(each.rank), each.host, str(each.pid), each.device, each.mlx,
                memory_text(each.memory),
            ]
            for each in ranks
        ]  # fmt: skip
        if states:
            header.append("state")
            for row, each in zip(rows, ranks, strict=True):
                row.append(each.state)
        caption = [f"backend {info.backend}", f"seed {info.seed}", f"cluster {info.id}"]
        super().__init__(header, rows, " · ".join([*caption, *info.notes]))


def memory_text(sample: MemorySample | None) -> str:
    """MLX's counter beside the operating system's: the two can differ by a factor."""
    if sample is None:
        return "unknown"
    from mlxbench_kernel.memory import format_bytes

    return (
        f"MLX {format_bytes(sample.active)}, process {format_bytes(sample.footprint)}; "
        f"{format_bytes(sample.available)} of {format_bytes(sample.total)} free"
    )
