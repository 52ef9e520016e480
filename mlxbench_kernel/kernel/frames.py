"""Tracebacks of what a magic runs for the user: theirs, without the frames of the magic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import IPython

import mlxbench_kernel
from mlxbench_kernel.errors import GivenUp, UsageError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_OWN = tuple(
    f"{folder}{os.sep}" for module in (mlxbench_kernel, IPython) for folder in module.__path__
)


@contextmanager
def only_frames_of_the_user(shell: InteractiveShell) -> Iterator[None]:
    """Have IPython show what is raised in the block without mlxbench's own frames.

    Parameters
    ----------
    shell
        Shows it.
    """
    try:
        yield
    except (UsageError, GivenUp):
        raise
    except (Exception, KeyboardInterrupt) as error:
        raised, found = error, _without_own(error.__traceback__)

        def lines() -> list[str]:
            show = shell.InteractiveTB.structured_traceback
            shown: list[str] = show(type(raised), raised, found)
            return shown

        setattr(error, "_render_traceback_", lines)  # noqa: B010  # IPython calls it
        raise


def _without_own(traceback: TracebackType | None) -> TracebackType | None:
    kept = []
    while traceback is not None:  # no recursion: of a RecursionError there are thousands
        if not traceback.tb_frame.f_code.co_filename.startswith(_OWN):
            kept.append(traceback)
        traceback = traceback.tb_next
    rest = None
    for each in reversed(kept):
        rest = TracebackType(rest, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return rest
