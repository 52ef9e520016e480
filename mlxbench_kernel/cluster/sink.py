"""Where the output of a cell on ranks goes."""

from __future__ import annotations

from typing import Any, Protocol


class CellOutputSink(Protocol):
    """Where a cell's output goes; `mlxbench_kernel.kernel.output` has the real one."""

    def message(self, rank: int, kind: str, content: dict[str, Any]) -> bool | None:
        """One iopub message of a rank (Jupyter messaging 5.4); on the client's IO thread.

        Whether `refresh` is to be called at once, not with the next of its calls.
        """

    def page(self, rank: int, data: dict[str, Any]) -> None:
        """A mime bundle that ``?`` would put into the pager."""

    def done(self, rank: int) -> None:
        """The cell has ended on a rank and all its output has come."""

    def refresh(self, status: str) -> None:
        """Show what has come; called a few times a second. `status` says who is late."""

    def finish(self) -> None:
        """Show everything that has come."""
