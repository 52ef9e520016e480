"""What a rank's main thread is doing, read from another thread without disturbing it."""

from __future__ import annotations

import linecache
import sys
import threading
import time
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from mlxbench_kernel.rank.requests import OWN_CELL


class Activity:
    """Follows the cells of one shell.

    Parameters
    ----------
    shell
        The shell of the rank; two of its events are listened to.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._main = threading.main_thread().ident
        self._since: float | None = None
        shell.events.register("pre_run_cell", self._begin)
        shell.events.register("post_run_cell", self._end)

    def _begin(self, info: Any) -> None:
        self._since = time.monotonic()

    def _end(self, result: Any) -> None:
        self._since = None

    @property
    def busy(self) -> bool:
        """Whether a cell is running."""
        return self._since is not None

    def now(self) -> dict[str, Any]:
        """State of the rank.

        Returns
        -------
        dict
            ``state`` "idle" or "busy"; ``seconds`` since the cell began (float);
            ``line`` number of the cell's line that is being executed, and ``source``, its
            text (None and "" outside a cell's own code).
        """
        since = self._since
        if since is None:
            return {"state": "idle", "seconds": 0.0, "line": None, "source": ""}
        line, source = self._cell_line()
        seconds = time.monotonic() - since
        return {"state": "busy", "seconds": seconds, "line": line, "source": source}

    def _cell_line(self) -> tuple[int | None, str]:
        frame = sys._current_frames().get(self._main or 0)
        found: tuple[int | None, str] = (None, "")
        # The outermost frame compiled from a cell: the line that the user is looking at.
        while frame is not None:
            filename = frame.f_code.co_filename
            if "ipykernel_" in filename or filename.startswith("<ipython-input"):
                if linecache.getline(filename, 1).startswith(OWN_CELL):
                    break  # a function of the user's is called from it, or none
                found = (frame.f_lineno, linecache.getline(filename, frame.f_lineno).strip())
            frame = frame.f_back
        return found
