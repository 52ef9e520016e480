"""A cell on ranks as the notebook shows it: where the cluster sends what comes from them."""

from __future__ import annotations

from mlxbench_kernel.kernel.output import CellOutput, Presenter


class ShownCell:
    """See `mlxbench_kernel.cluster.cells.CellOutputSink`.

    Parameters
    ----------
    output
        Takes the messages in.
    presenter
        Shows it.
    """

    def __init__(self, output: CellOutput, presenter: Presenter) -> None:
        self._presenter = presenter
        self.message = output.message
        self.page = output.page
        self.done = output.done

    def refresh(self, status: str) -> None:
        """Show what has come, and `status` below it."""
        self._presenter.status_line = status or None
        self._presenter.refresh()

    def finish(self) -> None:
        """Show everything."""
        self._presenter.finish()
