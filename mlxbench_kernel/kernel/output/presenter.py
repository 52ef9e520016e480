"""What the presenters have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from mlxbench_kernel.kernel.output.model import CellOutput

INTERVAL = 0.1  # seconds between redraws, at least

# publish(data, metadata, display_id, update) sends one display message.
Publish = Callable[[dict[str, Any], dict[str, Any], str | None, bool], None]


class Presenter(ABC):
    """Shows one `CellOutput`.

    Parameters
    ----------
    output
        What to show.
    publish
        ``publish(data, metadata, display_id, update)`` sends one display message.
    clock
        Seconds, as ``time.monotonic``.

    Attributes
    ----------
    output : CellOutput
        What is shown.
    status_line : str or None
        A line about the cell as a whole, shown below the output until `finish`.
    """

    def __init__(
        self,
        output: CellOutput,
        publish: Publish,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.output = output
        self.status_line: str | None = None
        self._publish = publish
        self._clock = clock
        self._due = clock()

    def refresh(self) -> None:
        """Show what has changed, at most ten times a second; cheap when nothing has."""
        now = self._clock()
        if now >= self._due:
            self._due = now + INTERVAL
            self._redraw(now)

    @abstractmethod
    def finish(self) -> None:
        """Show everything exactly; may be called again after more has come."""

    @abstractmethod
    def _redraw(self, now: float) -> None:
        """Show what has changed; may put off the next time through ``_due``."""
