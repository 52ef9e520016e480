"""What a shell has to do with memory: it says why allocations fail, and tells of its cells."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from mlxbench_kernel.memory.overflow import explain
from mlxbench_kernel.memory.passing import Passing

T = TypeVar("T")
FREE_SECONDS = 1.0  # for which it is waited that cells leave their thread
EXPLAINED = (RuntimeError, MemoryError)
_PASSING: weakref.WeakKeyDictionary[Any, Passing] = weakref.WeakKeyDictionary()


def explain_in(shell: Any) -> None:
    """Add what `explain` says to the errors of a shell's cells, and say what passed a limit.

    Parameters
    ----------
    shell
        An ``IPython.core.interactiveshell.InteractiveShell``. It has room for one handler of
        errors: one that the user has set is left there.
    """
    if shell not in _PASSING:
        _PASSING[shell] = Passing(shell)
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
    if passing := _PASSING.pop(shell, None):
        passing.stop()
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


def between_cells(shell: Any, work: Callable[[], T]) -> T | None:
    """Do something in the thread that runs the cells of a kernel; None where that is busy.

    Lazy graphs may only be gone into there: what evaluates them is that thread.

    Parameters
    ----------
    shell
        An ``IPython.core.interactiveshell.InteractiveShell``; None, or one that belongs to no
        kernel, has no loop that could be asked.
    work
        What is to be done; what it raises is raised here.
    """
    if threading.current_thread() is threading.main_thread():
        return work()
    loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
    if loop is None:
        return None
    done: Future[T] = Future()

    def run() -> None:
        if not done.set_running_or_notify_cancel():  # it came too late
            return
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    loop.add_callback(run)
    try:
        return done.result(FREE_SECONDS)
    except FutureTimeout:
        return None if done.cancel() else done.result()
