"""What stops a run by itself: conditions that are switched on and off."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training.conditions import BREAKPOINTS, Condition

ALWAYS = ("nonfinite", "replicas")  # those that are on from the beginning


class Breakpoints:
    """The breakpoints of one run.

    Attributes
    ----------
    known : dict of str to str
        Conditions by name; one of the user's own is its name.
    active : list of str
        The names of those that are on.
    """

    def __init__(self) -> None:
        self.known = dict(BREAKPOINTS)
        self.active = [*ALWAYS]

    def switch_on(self, what: str, measured: Collection[str]) -> None:
        """Stop for one of `known`, or for a condition of the user's own.

        Raises
        ------
        UsageError
            It is no condition, or names what is not measured.
        """
        if what not in self.known and str(what).isidentifier():
            near = difflib.get_close_matches(str(what), self.known, 1)
            if near:
                raise UsageError(f"there is no breakpoint {what!r}: did you mean {near[0]}?")
        text = self.known.get(what, what)
        Condition(text, measured)
        self.known[what] = text
        if what not in self.active:
            self.active.append(what)

    def switch_off(self, what: str) -> None:
        """Do not stop for this any more."""
        if what not in self.known:
            raise UsageError(f"there is no breakpoint {what!r}: there are {', '.join(self.known)}")
        if what in self.active:
            self.active.remove(what)

    def conditions(self, measured: Collection[str]) -> dict[str, Condition]:
        """Those that are on and can be looked at with what this run measures, by name."""
        found = {}
        for name in self.active:
            try:
                found[name] = Condition(self.known[name], measured)
            except UsageError:  # a step of the user's own has no gradients that we see
                continue
        return found
