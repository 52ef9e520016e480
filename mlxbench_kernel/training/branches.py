"""The branches of a run, and the edits that make one differ from another."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mlxbench_kernel.errors import UsageError

FIRST = "main"


@dataclass(frozen=True)
class Edit:
    """A change between two steps.

    Attributes
    ----------
    step
        After how many steps it was made.
    kind
        "set", "freeze", "unfreeze", "restart" (the batches), "equalize" or "load".
    name
        Of a setting, the path of a module, or of a checkpoint; the rank whose state all take.
    value
        Of a setting.
    """

    step: int
    kind: str
    name: str
    value: Any = None

    def __str__(self) -> str:
        if self.kind == "equalize":
            return f"the state of rank {self.name} on all ranks"
        if self.kind != "set":
            return f"{self.kind} {self.name}"
        number = isinstance(self.value, (int, float))
        return f"{self.name} = {self.value:g}" if number else f"{self.name} = {self.value}"


@dataclass
class Branch:
    """One course of a run.

    Attributes
    ----------
    name
        What it is called.
    parent, start
        It left that branch after so many steps; "" and 0 for the first.
    tip
        Its last step.
    edits
        All that were made on the way to the tip, those of the branches before included.
    """

    name: str
    parent: str = ""
    start: int = 0
    tip: int = 0
    edits: list[Edit] = field(default_factory=list)


class Branches:
    """All branches of a run.

    Attributes
    ----------
    current : Branch
        The one that steps are taken on.
    """

    def __init__(self) -> None:
        self.current = Branch(FIRST)
        self._all = {FIRST: self.current}

    def __iter__(self) -> Iterator[Branch]:
        return iter(self._all.values())

    def __getitem__(self, name: str) -> Branch:
        found = self._all.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._all, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self._all)}"
            raise UsageError(f"there is no branch {name!r}: {hint}")
        return found

    def fork(self, name: str, step: int, edits: int) -> Branch:
        """Begin a branch.

        Parameters
        ----------
        name
            Of the new one; "" for the next free number.
        step
            After which step of the current one.
        edits
            How many of its edits had been made there.
        """
        if not name:
            number = len(self._all) + 1
            while f"branch-{number}" in self._all:
                number += 1
            name = f"branch-{number}"
        if name in self._all:
            raise UsageError(f"there is a branch {name!r} already: take another name")
        self.current = Branch(
            name, self.of_step(step), step, step, list(self.current.edits[:edits])
        )
        self._all[name] = self.current
        return self.current

    def switch(self, name: str) -> Branch:
        """Make another one the current one."""
        self.current = self[name]
        return self.current

    def delete(self, name: str) -> None:
        """Forget a branch that nobody is on, and that no other has left."""
        branch = self[name]
        children = [each.name for each in self if each.parent == name]
        if branch is self.current:
            raise UsageError(f"{name} is the current branch: switch to another one first")
        if children:
            raise UsageError(f"branch {children[0]} begins in {name}: delete that one first")
        if not branch.parent:
            raise UsageError(f"{name} is where everything begins, and stays")
        del self._all[name]

    def path(self, name: str) -> list[tuple[str, int]]:
        """The branches on which a branch's steps are, with the last step that counts on each."""
        branch, limit = self[name], self[name].tip
        found = [(name, limit)]
        while branch.parent:
            limit = min(limit, branch.start)
            found.append((branch.parent, limit))
            branch = self[branch.parent]
        return found

    def of_step(self, step: int) -> str:
        """The branch in which a step on the way to the current one was taken."""
        branch = self.current
        while branch.parent and step <= branch.start:
            branch = self[branch.parent]
        return branch.name

    def plain(self) -> dict[str, Any]:
        """As dicts, lists and numbers, for `restored`."""
        return {
            "current": self.current.name,
            "all": [
                {
                    "name": each.name, "parent": each.parent, "start": each.start,
                    "tip": each.tip, "edits": [vars(edit) for edit in each.edits],
                }
                for each in self
            ],
        }  # fmt: skip

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> Branches:
        """From `plain`."""
        found = cls()
        found._all = {
            each["name"]: Branch(**{**each, "edits": [Edit(**edit) for edit in each["edits"]]})
            for each in plain["all"]
        }
        found.current = found[plain["current"]]
        return found
