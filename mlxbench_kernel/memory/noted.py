"""Has a shell say more of an allocation that failed: a note below the error, in every cell."""

from __future__ import annotations

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
