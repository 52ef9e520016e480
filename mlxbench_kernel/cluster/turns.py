"""Who uses the ranks: cells of the notebook, and what threads of it have ranks do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlxbench_kernel.errors import GivenUp
from mlxbench_kernel.interrupts import held

WAIT_SECONDS = 0.1
WAITING = "waiting for"  # what is shown begins so
Show = Callable[[str], None]


def ignore(text: str) -> None:
    """A `Show` for those who wait in silence."""


class Turns:
    """Lets one thread after the other use the ranks.

    Without it the cell of one thread would hear the other's output, and a Ctrl-C stop both.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._in_background = False

    @contextmanager
    def taken(self, show: Show) -> Iterator[None]:
        """Use the ranks in the block; a thread that uses them already goes on.

        Parameters
        ----------
        show
            Is told again and again who is waited for. What it raises ends the waiting.

        Raises
        ------
        GivenUp
            A Ctrl-C while it waited; the block has not begun.
        """
        mine = begun = False
        try:
            while not mine:
                with held():
                    mine = self._lock.acquire(timeout=WAIT_SECONDS)
                if not mine:
                    show(self._who())
            self._in_background = threading.current_thread() is not threading.main_thread()
            begun = True
            yield
        except KeyboardInterrupt:
            if begun:
                raise
            raise GivenUp(f"nothing was run, it was {self._who()}") from None
        finally:
            with held():
                if mine:
                    self._lock.release()

    def _who(self) -> str:
        if self._in_background:
            return f"{WAITING} what runs on the ranks in the background, as a chat's answer"
        return f"{WAITING} a cell that uses the ranks"
