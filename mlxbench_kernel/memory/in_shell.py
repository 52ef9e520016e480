"""What a shell has to do with memory: it says why allocations fail, and tells of its cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxbench_kernel.memory.overflow import explain

EXPLAINED = (RuntimeError, MemoryError)


def explain_in(shell: Any) -> None:
    """Add what `explain` says to the errors of a shell's cells.

    Parameters
    ----------
    shell
        An ``IPython.core.interactiveshell.InteractiveShell``. It has room for one such handler:
        one that the user has set is left there.
    """
    if shell.custom_exceptions:
        return

    def show(shell: Any, kind: Any, error: BaseException, tb: Any, tb_offset: Any = None) -> None:
        said = explain(error)
        if said is not None:
            error.add_note(said)
        shell.showtraceback((kind, error, tb), tb_offset=tb_offset)

    shell.set_custom_exc(EXPLAINED, show)


def explain_no_more_in(shell: Any) -> None:
    """Take out what `explain_in` has put in."""
    if shell.custom_exceptions == EXPLAINED:
        shell.set_custom_exc((), None)


def follow_cells(shell: Any, after: Callable[[], None]) -> None:
    """Note the cells of a shell in `RECORD`, where nobody else does.

    Parameters
    ----------
    shell
        An ``IPython.core.interactiveshell.InteractiveShell``.
    after
        Called after each cell, in the thread that runs them.
    """
    from mlxbench_kernel.memory.record import RECORD  # with NumPy: a quarter of a kernel's start

    def begin(info: Any) -> None:
        RECORD.begin_cell(f"Cell In[{shell.execution_count - 1}]")

    def end(result: Any) -> None:
        RECORD.end_cell()
        after()

    shell.events.register("pre_run_cell", begin)
    shell.events.register("post_run_cell", end)
