"""What ranks say to the notebook while they do something for it, see `ask_ranks`."""

from __future__ import annotations

import time
from typing import Any

SAID = "application/vnd.mlxbench.said+json"
SAY_SECONDS = 0.05  # from one time to the next: to say something takes a rank 0.3 ms


def say(**told: Any) -> None:
    """Tell the notebook something that JSON can hold; on the rank, in a cell of `ask_ranks`."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    shell.display_pub.publish({SAID: told})


class SaidAtTimes:
    """Says how far something is, by two numbers, some times a second; when they are equal, always.

    Parameters
    ----------
    *names
        Of the two, as the notebook hears them.
    """

    def __init__(self, *names: str) -> None:
        self._names, self._at = names, float("-inf")

    def __call__(self, first: int, second: int) -> None:
        now = time.monotonic()
        if now - self._at > SAY_SECONDS or first == second:
            self._at = now
            say(**dict(zip(self._names, (first, second), strict=True)))
