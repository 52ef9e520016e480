"""A progress bar for what takes seconds: in a notebook a widget, in a terminal text."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self


class ProgressBar:
    """Progress of one piece of work; the bar disappears at its end.

    Used as a context manager, and called with the fraction done (0 to 1) and a text. It appears
    at the first call, so that work which is over at once shows none. It never goes back, and may
    be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: float, text: str) -> None:
        """Show that the fraction `done` (0 to 1) is done, and `text` is under way."""
        with self._lock:
            if self._bar is None:
                self._bar = self._appear(text)
            self._bar.n = max(self._bar.n, round(100 * min(max(done, 0.0), 1.0)))
            self._bar.set_description_str(text, refresh=False)
            self._bar.refresh()

    @staticmethod
    def _appear(text: str) -> Any:
        from tqdm.auto import tqdm

        form = "{desc} {percentage:3.0f}%|{bar}|"
        return tqdm(total=100, desc=text, bar_format=form, leave=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.n = self._bar.total  # tqdm leaves an unfinished one standing, in red
            self._bar.close()
