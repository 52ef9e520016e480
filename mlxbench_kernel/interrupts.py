"""Ctrl-C at the wrong moment: held back until what must not be broken off is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


@contextmanager
def held() -> Iterator[None]:
    """Let a block run to its end; a Ctrl-C that came meanwhile is raised then.

    For the import of libraries that cannot be imported again once that was broken off (NumPy is
    one), and for cleaning up. Signals reach the main thread only; in others this does nothing.

    Raises
    ------
    KeyboardInterrupt
        After the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *event: came.append(event))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def shielded(*managers: AbstractContextManager[Any]) -> Iterator[list[Any]]:
    """Enter and leave context managers with `held`: a Ctrl-C stops the block, and nothing else.

    Parameters
    ----------
    *managers
        Entered in this order, and left in the opposite one.

    Yields
    ------
    list
        What they gave.
    """
    entered = ExitStack()

    def leave() -> None:
        with held():
            entered.close()

    try:
        try:
            with held():
                given = [entered.enter_context(manager) for manager in managers]
            yield given
        finally:
            leave()
    finally:
        leave()  # where a Ctrl-C came before the first one had begun
