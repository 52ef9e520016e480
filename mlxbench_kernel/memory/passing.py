"""Says after a cell that it passed MLX's memory limit, which refuses nothing: it slows down."""

from __future__ import annotations

import sys
from typing import Any

from mlxbench_kernel.units import format_bytes


class Passing:
    """Compares the peak of each cell of a shell with MLX's memory limit.

    Parameters
    ----------
    shell
        An ``IPython.core.interactiveshell.InteractiveShell``.
    """

    def __init__(self, shell: Any) -> None:
        self._events = shell.events
        self._before: int | None = None
        self._events.register("pre_run_cell", self._begin)
        self._events.register("post_run_cell", self._end)

    def stop(self) -> None:
        """Say nothing any more."""
        self._events.unregister("pre_run_cell", self._begin)
        self._events.unregister("post_run_cell", self._end)

    def _begin(self, info: Any) -> None:
        self._before = _peak()

    def _end(self, result: Any) -> None:
        before, self._before = self._before, None
        if "mlx.core" not in sys.modules or before is None:  # registered within this cell
            return
        import mlx.core as mx

        peak, limit = _peak(), mx.get_memory_limit()
        if peak > limit and peak != before:
            print(told(peak, limit), file=sys.stderr)


def told(peak: int, limit: int) -> str:
    """What it means that so many bytes were active with that limit, and what to do; one line."""
    return (
        f"MLX's memory limit of {format_bytes(limit)} was passed: {format_bytes(peak)} were active "
        "at the peak. Beyond it evaluation waits for what it has begun, which is slower; nothing "
        "was refused. Delete what is not needed, take a smaller batch or context, or raise it: "
        f"%mlx_mem limit memory={_roomy(peak)}"
    )


def _roomy(peak: int) -> str:
    """A limit with some room above a peak, as can be typed."""
    return f"{max(1, -(-peak * 5 // 4 // 10**6))}MB"


def _peak() -> int:
    """Of what MLX had active since the start, or since somebody reset it; 0 before MLX is used."""
    if "mlx.core" not in sys.modules:
        return 0
    import mlx.core as mx

    return int(mx.get_peak_memory())
