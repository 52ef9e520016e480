"""Measures a run every so many steps by what it is not trained on."""

from __future__ import annotations

from collections.abc import Callable

from mlxbench_kernel.errors import UsageError

LOSS = "validation_loss"


class Validation:
    """When a run is validated, and how.

    Parameters
    ----------
    measure
        Gives the loss, on all ranks alike, and changes nothing of the state; None for no
        validation.
    interval
        Steps from one to the next; 0 for none.

    Raises
    ------
    UsageError
        The interval is no number of steps.
    """

    def __init__(self, measure: Callable[[], float] | None, interval: int) -> None:
        if not isinstance(interval, int) or interval < 0:
            raise UsageError(f"validate_every takes a number of steps, not {interval!r}")
        self._measure, self.interval = measure, interval

    @property
    def names(self) -> list[str]:
        """What it measures, for conditions."""
        return [LOSS] if self._measure is not None and self.interval else []

    def due(self, step: int) -> bool:
        """Whether it is time after this step."""
        return bool(self.names) and step % self.interval == 0

    def measure(self) -> float:
        """The loss of now."""
        assert self._measure is not None
        return float(self._measure())
