"""What a rank that was started anew is told by one that went on: all that is no protected state.

Ranks decide alike because they know the same: breakpoints, the user's metrics, that the first step
was tried. And the notebook reads curves and journal from the first rank, whichever that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxbench_kernel.training.loop import OWN
from mlxbench_kernel.training.place import Entry

if TYPE_CHECKING:
    from mlxbench_kernel.training.stepper import Stepper


class Handover:
    """The `Companion` of a stepper's protected state.

    Parameters
    ----------
    stepper
        Whose.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper

    def give(self, own: bool) -> dict[str, Any]:
        """All of it, in terms of what pickles; from any thread, evaluates nothing.

        Parameters
        ----------
        own
            Whether it is for this rank itself: then also what it alone has measured (times,
            memory, its own loss), which says nothing of another rank.
        """
        stepper = self._stepper
        without = () if own else OWN
        return {
            "run": stepper.report.run,
            "journal": [vars(each) for each in list(stepper.journal)],
            "history": stepper.history.give(without),
            "samples": stepper.samples.give(without),
            "breakpoints": dict(stepper.breakpoints.known),
            "active": list(stepper.breakpoints.active),
            "metrics": sorted(stepper.metrics),
            "rehearsed": stepper.rehearsed,
        }

    def take(self, given: dict[str, Any]) -> None:
        """Go on where the giver was; the counters are its counters already."""
        stepper = self._stepper
        stepper.report.run = given["run"]
        stepper.journal[:] = [Entry(**each) for each in given["journal"]]
        stepper.history.receive(given["history"])
        stepper.samples.receive(given["samples"])
        stepper.breakpoints.known = dict(given["breakpoints"])
        stepper.breakpoints.active = list(given["active"])
        stepper.metrics.update(given["metrics"])
        stepper.rehearsed = given["rehearsed"]
        stepper.rejoin()
        stepper.freeze_again()
        branch = stepper.branches.current
        stepper.history.truncate(branch.name, branch.tip)
        stepper.samples.truncate(branch.name, branch.tip)
        stepper.report.look()
