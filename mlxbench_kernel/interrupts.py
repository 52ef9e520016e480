"""Ctrl-C at the wrong moment: held back until what must not be broken off is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
