"""What a rank that was started anew is told by one that went on: all that is no protected state.

Ranks decide alike because they know the same: breakpoints, the user's metrics, that the first step
was tried. And the notebook reads curves and journal from the first rank, whichever that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlxbench_kernel.rank import frozen
from mlxbench_kernel.training.draws import key_of
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
            "key": None if self._loaded() else stepper.first_key,
            "run": stepper.report.run,
            "journal": [vars(each) for each in list(stepper.journal)],
            "history": stepper.history.give(without),
            "samples": stepper.samples.give(without),
            "breakpoints": dict(stepper.breakpoints.known),
            "active": list(stepper.breakpoints.active),
            "metrics": sorted(stepper.metrics),
            "rehearsed": stepper.rehearsed,
            "generators": stepper.snapshots.generators,
            "whole": own,
        }

    def _loaded(self) -> bool:
        """Whether random states came from a checkpoint, of which a fresh rank has none."""
        return any(each.kind == "load" for each in self._stepper.branches.current.edits)

    def take(self, given: dict[str, Any]) -> str:
        """Go on where the giver was; the counters and the random state are its own already.

        Returns
        -------
        str
            That the random state stays the giver's, where this rank had one of its own.
        """
        stepper = self._stepper
        said = "" if given["whole"] else self._draw(given["key"])
        stepper.report.run = given["run"]
        stepper.journal[:] = [Entry(**each) for each in given["journal"]]
        stepper.history.receive(given["history"])
        stepper.samples.receive(given["samples"])
        stepper.breakpoints.known = dict(given["breakpoints"])
        stepper.breakpoints.active = list(given["active"])
        stepper.metrics.update(given["metrics"])
        stepper.rehearsed = given["rehearsed"]
        stepper.snapshots.generators = given["generators"]
        stepper.rejoin()
        stepper.freeze_again()
        branch = stepper.branches.current
        stepper.history.truncate(branch.name, branch.tip)
        stepper.samples.truncate(branch.name, branch.tip)
        stepper.report.look()
        return said

    def _draw(self, others_first: list[int] | None) -> str:
        """Have the random state that this rank would have, and not that of the giver."""
        stepper = self._stepper
        now: list[int] = np.array(frozen.random_key()).tolist()
        key = others_first and key_of(stepper.first_key, others_first, now)
        if key:
            frozen.seed(mx.array(key, mx.uint32))
            return ""
        return (
            f"from step {stepper.step} on it takes the random numbers of the rank that its state "
            "is from: where the ranks drew others, running the same steps again will differ"
        )
