"""What is said to somebody who waits for a step that does not end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LATE_SECONDS = 2.0


class SaidOnce:
    """Says once, in the main thread only, who is late and what can be done.

    Parameters
    ----------
    tell
        Is told.
    late
        Who is late, in words; "" for nobody.
    """

    def __init__(self, tell: Callable[[str], None], late: Callable[[], str]) -> None:
        self._tell, self._late = tell, late
        self._started = time.monotonic()
        self._said = threading.current_thread() is not threading.main_thread()

    def __call__(self) -> None:
        """Called again and again while somebody waits."""
        late = "" if self._said else self._late()
        if late and time.monotonic() - self._started > LATE_SECONDS:
            self._said = True
            self._tell(
                f"waiting for the step that is being taken: {late}. Ctrl-C stops waiting, then "
                "%mlx_dist interrupt breaks the step off"
            )


def gave_up(late: str) -> str:
    """What is said when a Ctrl-C has ended the waiting.

    Parameters
    ----------
    late
        Who is late, in words; "" for nobody.
    """
    waited = f"the step that is being taken{f' ({late})' if late else ''}"
    return (
        f"nothing was run, it waited for {waited}. The run pauses after that step; "
        "%mlx_dist interrupt breaks it off"
    )
