"""A progress bar for what takes seconds: in a notebook a widget, in a terminal text."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self


class ProgressBar:
    """Progress of one piece of work; the bar disappears at its end.

    Used as a context manager, and called with the fraction done (0 to 1) and a text. It never
    goes back, and may be called from any thread.

    Parameters
    ----------
    text
        What is being done, until the first call.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._bar: Any = None

    def __enter__(self) -> Self:
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=100,
            desc=self._text,
            bar_format="{desc} {percentage:3.0f}%|{bar}|",
            leave=False,
        )
        return self

    def __call__(self, done: float, text: str) -> None:
        """Show that the fraction `done` (0 to 1) is done, and `text` is under way."""
        with self._lock:
            self._bar.n = max(self._bar.n, round(100 * min(max(done, 0.0), 1.0)))
            self._bar.set_description_str(text, refresh=False)
            self._bar.refresh()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
