"""The two threads of a view: one runs commands, the other redraws.

What a handler of a widget raises goes to a log that nobody sees, and what it waits for holds up
the kernel. Therefore handlers only hand over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from mlxbench_kernel.errors import BenchError

MOST_A_SECOND = 20
LATE = 0.5  # seconds after which what a redraw left out is drawn


def one_line(error: Exception) -> str:
    """What went wrong, as one line to read."""
    text = (str(error).strip() or "no reason was given").partition("\n")[0]
    return text if isinstance(error, BenchError) else f"{type(error).__name__}: {text}"


class Commands:
    """Runs commands one after the other on a thread of its own.

    Parameters
    ----------
    changed
        Called on any thread after something of what is public here changed.

    Attributes
    ----------
    doing : str
        What is being done; "" if nothing.
    since : float
        When that began (`time.monotonic`).
    error : str
        One line of what the last command raised; "" if it did not.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.doing, self.since, self.error = "", 0.0, ""
        self._changed = changed
        self._queue: SimpleQueue[tuple[str, Callable[[], object]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="view commands", daemon=True)
        self._thread.start()

    def do(self, doing: str, command: Callable[[], object]) -> None:
        """Run a command when those before it are done.

        Parameters
        ----------
        doing
            For a person: ``"going back 3 steps"``.
        command
            What it raises is shown.
        """
        self._queue.put((doing, command))

    def close(self) -> None:
        """End the thread after the command that it is running."""
        self._queue.put(None)

    def _run(self) -> None:
        while (asked := self._queue.get()) is not None:
            self.since, (self.doing, command) = time.monotonic(), asked
            self._changed()
            try:
                command()
                self.error = ""
            except Exception as error:
                self.error = one_line(error)
            self.doing = ""
            self._changed()


class Redraws:
    """Draws on a thread of its own, at most so many times a second.

    Parameters
    ----------
    draw
        Draws what changed; says whether it left something for a little later.
    ready
        Whether the browser has drawn what it got before.
    """

    def __init__(self, draw: Callable[[], bool], ready: Callable[[], bool]) -> None:
        self._draw, self._ready = draw, ready
        self._asked, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="view redraws", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Something changed."""
        self._asked.set()

    def close(self) -> None:
        """End the thread, and wait until nothing more is drawn."""
        self._closed.set()
        self._asked.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        left = False
        while True:
            self._asked.wait(LATE if left else None)
            while not self._ready() and not self._closed.wait(0.01):
                pass
            if self._closed.is_set():
                return
            self._asked.clear()
            began = time.monotonic()
            left = self._draw()
            self._closed.wait(max(0.0, began + 1 / MOST_A_SECOND - time.monotonic()))
