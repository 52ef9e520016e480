"""Where a run stands, and going from there to another of its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.frozen import Parts
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.batches import Batches
from mlxbench_kernel.training.branches import Branches
from mlxbench_kernel.training.exchange import gather_numbers
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.settings import Settings
from mlxbench_kernel.training.snapshots import Flags, Snapshot, Snapshots, default_budget
from mlxbench_kernel.training.taken import Taken

STAY = ("tip", "book")  # of the counters: what does not go back with the rest
ENTRIES = 2000  # of the journal
PROTECTED = "stepper"  # what the state is called among what is protected


@dataclass(frozen=True)
class Entry:
    """A line of the journal.

    Attributes
    ----------
    step, branch
        Where it was.
    text
        What was done.
    time
        When (Unix time).
    """

    step: int
    branch: str
    text: str
    time: float


class Place:
    """A place in a run, and the ways to another one; the first part of `Stepper`.

    Parameters
    ----------
    counters
        ``step``, ``position``, ``edits``, ``tip``, ``clip``, ``shuffle``, ``book``.
    roots
        The dicts and lists of the state, the counters among them.
    settings
        What can be changed.
    batches, accumulate
        What steps are given.
    budget
        Bytes for kept states; None for an eighth of what is free.
    """

    group: mx.distributed.Group
    modules: dict[str, Module]
    trees: dict[str, Any]
    program: Any
    history: History
    samples: ParameterHistory
    doing: str

    def __init__(
        self,
        counters: dict[str, Any],
        roots: list[Any],
        settings: Settings,
        batches: Batches,
        accumulate: int,
        budget: int | None,
    ) -> None:
        self.counters, self._roots, self.settings = counters, roots, settings
        self.batches, self.accumulate = batches, accumulate
        self.branches = Branches()
        self.said = ""  # why it stopped last
        self.journal: list[Entry] = []
        self.snapshots = Snapshots(default_budget() if budget is None else budget)
        self._flags: Flags = []
        self._write_book()

    @property
    def step(self) -> int:
        """How many steps were taken to where it is now."""
        return int(self.counters["step"])

    def settings_have(self, name: str) -> bool:
        """Whether there is such a setting."""
        return name in self.settings.values()

    def _catch_up(self) -> None:
        """Record what a fault or an interrupt has kept from being recorded; on all ranks alike."""
        raise NotImplementedError

    def _advance(self, measured: bool = False) -> Taken:
        """Take one step of the current branch, keep its state, and note what was measured."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Put a line into the journal."""
        entry = Entry(self.step, self.branches.current.name, text, time.time())
        self.journal.append(entry)
        del self.journal[:-ENTRIES]

    def refresh(self) -> None:
        """Take note that settings, or what is trained, may have changed."""
        same = self.program.refresh()
        flags: Flags = [
            (each, frozenset(each._no_grad), each._training)
            for module in self.modules.values()
            for each in module.modules()
        ]
        if not (same and _are_same(flags, self._flags)):
            self._flags = flags
            self.snapshots.look_again()

    def frozen_state(self) -> Parts:
        """The state of now, see `frozen.freeze`.

        Raises
        ------
        UsageError
            A part of it is not evaluated.
        """
        parts = frozen.freeze(self._roots)
        if parts is None:
            raise UsageError(
                "Stepper: a part of the state is not evaluated after the step: name everything "
                "that it changes in state=…"
            )
        return parts

    def keep(self, pinned: bool = False, random: mx.array | None = None) -> Snapshot:
        """Keep the state of now, as one to go back to and as what a fault goes back to.

        All of it is evaluated, the random key too.

        Parameters
        ----------
        pinned
            Whether it must stay.
        random
            The key of ``mx.random`` that goes with it; None for the one of now.
        """
        parts = self.frozen_state()
        random = frozen.random_key() if random is None else random
        PROTECTION.commit({PROTECTED: parts}, random)
        branch = self.branches.of_step(self.step)
        return self.snapshots.take(branch, self.step, parts, random, self._flags, pinned)

    def kept_at(self, step: int) -> Snapshot | None:
        """The state after a step of the current branch, if it is kept."""
        return self.snapshots.find(self.branches.of_step(step), step)

    # -- back and forth ----------------------------------------------------------

    def back(self, steps: int = 1) -> int:
        """Go back by so many steps; see `to`."""
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(f"back takes a number of steps, as back(10), not {steps!r}")
        if steps > self.step:
            raise UsageError(f"there are {self.step} steps to go back from here, not {steps}")
        return self.to(self.step - steps)

    def to(self, step: int) -> int:
        """Go to the state after a step of the current branch, backwards or forwards.

        What is kept is put back. Where that step is not kept, the last kept one before it is,
        and the steps in between are taken again, with the edits that were made on the way.

        Parameters
        ----------
        step
            Which one; 0 is the beginning.

        Returns
        -------
        int
            How many steps were taken again.

        Raises
        ------
        UsageError
            There is no such step, or it cannot be reached with the batches that are kept.
        """
        self._catch_up()
        branch = self.branches.current
        if not isinstance(step, int) or not 0 <= step <= branch.tip:
            raise UsageError(
                f"there is no step {step} of branch {branch.name}: there are 0 to {branch.tip}"
            )
        kept = self._common(step)
        if kept.step < step or step < branch.tip:
            self._check_batches(kept, step)
        self.put_back(kept)
        try:
            while self.step < step:
                done, left = self.step - kept.step, step - kept.step
                self.doing = f"going to step {step}: {done} of {left}"
                self._advance()
        finally:
            self.doing = "paused"
        return step - kept.step

    def _common(self, step: int) -> Snapshot:
        """The last state up to a step that all ranks have kept."""
        path = self.branches.path(self.branches.current.name)
        target = step
        while True:
            found = self.snapshots.before(path, target)
            steps = gather_numbers([-1 if found is None else found.step], self.group)[:, 0]
            target = int(steps.min())
            if target < 0:
                raise UsageError(
                    f"step {step} is not kept on all ranks (kept here: {self.kept_in_words()})"
                )
            if int(steps.max()) == target:
                assert found is not None
                return found

    def _check_batches(self, kept: Snapshot, step: int) -> None:
        oldest, accumulate = self.batches.oldest, self.accumulate
        if self.batches.again or kept.step * accumulate >= oldest:
            return
        first = -(-oldest // accumulate)
        raise UsageError(
            f"step {step} cannot be gone to: its batches came from an iterator, of which only "
            f"those from step {first} on are kept; give a sequence or a function of the number"
        )

    def put_back(self, kept: Snapshot) -> None:
        """Be where a kept state was."""
        stay = {name: self.counters[name] for name in STAY}
        tip = self.snapshots.find(self.branches.current.name, self.branches.current.tip)
        if tip is not None:
            tip.pinned = True
        kept.put_back()
        self.said = ""
        self.counters.update(stay)
        if kept.flags is self._flags:  # as mostly: to look at all modules takes some milliseconds
            self.program.refresh_settings()
        else:
            self._flags = kept.flags
            self.refresh()
        parts = frozen.freeze(self._roots)
        PROTECTION.commit({} if parts is None else {PROTECTED: parts})

    def kept_in_words(self) -> str:
        """The steps that are kept, as ``0, 40, 60-100``."""
        path = self.branches.path(self.branches.current.name)
        steps = sorted(
            each.step
            for each in self.snapshots.all()
            for name, limit in path
            if each.branch == name and each.step <= limit
        )
        return in_words(steps)

    # -- after a fault -----------------------------------------------------------

    def _write_book(self) -> None:
        """Note the branches where a rank that is started anew gets them from."""
        self.counters["book"] = json.dumps(self.branches.plain(), sort_keys=True)

    def rejoin(self) -> None:
        """Go by the counters, which may be those of another rank or of an earlier step."""
        if not self.counters["book"]:
            self._write_book()
        plain: dict[str, Any] = json.loads(self.counters["book"])
        here = self.branches.plain()
        for each in [*plain["all"], *here["all"]]:
            each.pop("tip")
        if plain != here:
            self.branches = Branches.restored(json.loads(self.counters["book"]))
        self.branches.current.tip = self.counters["tip"] = max(self.counters["tip"], self.step)
        if self.kept_at(self.step) is None:
            self.keep()

    def recorded(self) -> int:
        """The last step of the current branch in the history; 0 where there is none."""
        return int(self.history.last(self.branches.current.name).get("step", 0))

    def settle_tip(self, tip: int) -> None:
        """Forget steps that not all ranks have completed."""
        branch = self.branches.current
        tip = max(tip, self.step)
        # What was recorded may go further than what a fault goes back to.
        if max(branch.tip, self.recorded()) > tip:
            self.history.truncate(branch.name, tip)
            self.samples.truncate(branch.name, tip)
            self.snapshots.forget_after(branch.name, tip)
        branch.tip = self.counters["tip"] = tip


def _are_same(one: Flags, other: Flags) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in pairs)


def in_words(steps: Iterable[int]) -> str:
    """Numbers in ascending order, as ``0, 40, 60-100``."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        elif not runs or step != runs[-1][1]:
            runs.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
