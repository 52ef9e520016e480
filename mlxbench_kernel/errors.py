"""The few exceptions of mlxbench; each message starts with one line that can be acted on.

The first line names the rank or host, the cause and what to type next; detail may follow
on further lines. In IPython these are shown as that message alone, without the traceback
of mlxbench's own code, which would tell a user nothing.
"""

from __future__ import annotations


class BenchError(Exception):
    """Base of all errors that mlxbench raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython prints instead of a traceback (IPython ``showtraceback``)."""
        return [f"\x1b[31m{type(self).__name__}\x1b[39m: {self}"]


class UsageError(BenchError):
    """Bad input: an option, a hostfile, a name. Nothing was changed."""


class ClusterError(BenchError):
    """Ranks could not be started, reached, or are gone."""


class StorageError(BenchError):
    """A file could not be written; nothing of it is left, and what was there before still is."""


class CellError(BenchError):
    """A cell raised on one or more ranks."""


class CollectiveMismatch(CellError):
    """Ranks called different collectives, or the same with other shapes or dtypes."""


class CellTimeout(BenchError):
    """Waiting for a cell was given up; the ranks go on."""


class GivenUp(KeyboardInterrupt):
    """Ctrl-C while something waited for its turn on the ranks, or while they were at it.

    The message says what came of it; it is shown as one line, as that of `BenchError` is.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[31m{KeyboardInterrupt.__name__}\x1b[39m: {self}"]
