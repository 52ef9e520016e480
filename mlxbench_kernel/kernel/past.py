"""Shows what the ranks' last cell put out before this notebook came to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlxbench_kernel.kernel.output import CellOutput, choose_presenter
from mlxbench_kernel.kernel.ranks import ranks_text

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from mlxbench_kernel.cluster import Cluster

CODE_LINES = 3


def show_last_cell(shell: InteractiveShell, cluster: Cluster) -> None:
    """Show the last cell that ran on ranks, and whether it still does; nothing without one.

    Parameters
    ----------
    shell
        The notebook's shell.
    cluster
        Where the ranks are.
    """
    cells = cluster.last_cell()
    if not cells:
        return
    one = next(iter(cells.values()))
    busy = [rank for rank, cell in cells.items() if cell.running]
    state = f"still runs on {ranks_text(busy)}, the next cell waits for it" if busy else "has ended"
    sent = time.strftime("%H:%M:%S", time.localtime(one.sent))
    print(f"the last cell, sent at {sent} to {ranks_text(cells)}, {state}:")
    print(_shortened(one.code))
    output = CellOutput(list(cells), cluster.size)
    for rank, cell in cells.items():
        if cell.dropped:
            output.stream(rank, "stderr", f"({cell.dropped} characters before are not kept)\n")
        for kind, content in cell.messages:
            if kind == "page":
                output.page(rank, content["data"])
            else:
                output.message(rank, kind, content)
        output.done(rank)
    choose_presenter(shell, output).finish()
    failure = output.failure()
    if failure is not None:
        print("\n".join(failure._render_traceback_()))


def _shortened(code: str) -> str:
    """The first lines of a cell, indented."""
    lines = code.strip().splitlines()
    more = [f"… {len(lines) - CODE_LINES} more lines"] if len(lines) > CODE_LINES + 1 else []
    shown = lines[:CODE_LINES] if more else lines
    return "\n".join(f"    {line}" for line in [*shown, *more])
