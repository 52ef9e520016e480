"""Where a run stands, and moving about in it: back, to another branch, with other settings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import host_pool
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.batches import Batches
from mlxbench_kernel.training.branches import Branches, Edit
from mlxbench_kernel.training.exchange import gather_numbers
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.loop import Taken
from mlxbench_kernel.training.replicas import copy_from
from mlxbench_kernel.training.script import script
from mlxbench_kernel.training.settings import Settings, frozen_parts, part
from mlxbench_kernel.training.snapshots import Snapshot, Snapshots

STAY = ("tip", "book")  # of the counters: what does not go back with the rest
ENTRIES = 2000  # of the journal
_NOTED = "stepper"


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


class Course:
    """What `Stepper` is made of: its place in the run, and the ways to another one.

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
        self.snapshots = Snapshots(host_pool()[1] // 8 if budget is None else budget)
        self._write_book()

    @property
    def step(self) -> int:
        """How many steps were taken to where it is now."""
        return int(self.counters["step"])

    def settings_have(self, name: str) -> bool:
        """Whether there is such a setting."""
        return name in self.settings.values()

    def advance(self, measured: bool = False) -> Taken:
        """Take one step; see `Stepper.advance`."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Put a line into the journal."""
        entry = Entry(self.step, self.branches.current.name, text, time.time())
        self.journal.append(entry)
        del self.journal[:-ENTRIES]

    def keep(self, pinned: bool = False) -> Snapshot:
        """Keep the state of now, as one to go back to and as what a fault goes back to."""
        parts = frozen.freeze(self._roots)
        if parts is None:
            raise UsageError(
                "Stepper: a part of the state is not evaluated after the step: name everything "
                "that it changes in state=…"
            )
        PROTECTION.commit({_NOTED: parts})
        modules = [each for module in self.modules.values() for each in module.modules()]
        branch = self.branches.of_step(self.branches.current.name, self.step)
        return self.snapshots.take(branch, self.step, parts, modules, pinned)

    # -- back and forth ----------------------------------------------------------

    def back(self, steps: int = 1) -> int:
        """Go back by so many steps; see `to`."""
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(f"back takes a number of steps, as back(10), not {steps!r}")
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
        branch = self.branches.current
        if not isinstance(step, int) or not 0 <= step <= branch.tip:
            raise UsageError(
                f"there is no step {step} of branch {branch.name}: there are 0 to {branch.tip}"
            )
        kept = self._common(step)
        if kept.step < step or step < branch.tip:
            self._check_batches(kept, step)
        self._put_back(kept)
        try:
            while self.step < step:
                done, left = self.step - kept.step, step - kept.step
                self.doing = f"going to step {step}: {done} of {left}"
                self.advance()
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

    def _put_back(self, kept: Snapshot) -> None:
        stay = {name: self.counters[name] for name in STAY}
        tip = self.snapshots.find(self.branches.current.name, self.branches.current.tip)
        if tip is not None:
            tip.pinned = True
        kept.put_back()
        self.said = ""
        self.counters.update(stay)
        self.program.refresh()
        PROTECTION.commit()

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

    # -- branches ----------------------------------------------------------------

    def branch(self, name: str = "", at: int | None = None) -> str:
        """Begin another course from here, or from an earlier step; the old one is kept.

        Returns
        -------
        str
            What it is called.
        """
        if at is not None:
            self.to(at)
        left = self.branches.current
        made = self.branches.fork(str(name), self.step, self.counters["edits"])
        self.counters["tip"] = self.step
        for branch, step in ((left.name, left.tip), (made.parent, made.start)):
            if found := self.snapshots.find(branch, step):
                found.pinned = True
        self._write_book()
        self.keep(pinned=True)
        self.note(f"branch {made.name}, from {made.parent}")
        return made.name

    def switch(self, name: str) -> None:
        """Go to the last step of another branch."""
        before = self.branches.current.name
        self.branches.switch(str(name))
        self.counters["tip"] = self.branches.current.tip
        self._write_book()
        try:
            self.to(self.branches.current.tip)
        except UsageError:
            self.branches.switch(before)
            self.counters["tip"] = self.branches.current.tip
            self._write_book()
            raise
        self.note(f"switched from {before}")

    def delete(self, name: str) -> None:
        """Forget a branch, with its steps."""
        self.branches.delete(str(name))
        self.snapshots.forget(name)
        self.history.drop(name)
        self.samples.drop(name)
        self._write_book()
        PROTECTION.commit()
        self.note(f"deleted branch {name}")

    def compare(self, one: str, other: str) -> list[tuple[str, float]]:
        """How far the parameters of two branches' last steps are apart.

        Returns
        -------
        list of (str, float)
            By parameter the norm of the difference over that of the first, the largest first.
        """
        here, step = self.branches.current.name, self.step
        found = []
        for name in (one, other):
            self.branches[name]
        try:
            for name in (one, other):
                self.switch(name)
                found.append({path: frozen.handle(each) for path, each in self._parameters()})
        finally:
            self.branches.switch(here)
            self.counters["tip"] = self.branches.current.tip
            self._write_book()
            self.to(step)
        first, second = found
        apart = {
            name: mx.linalg.norm((second[name] - array).astype(mx.float32).reshape(-1))
            / mx.maximum(mx.linalg.norm(array.astype(mx.float32).reshape(-1)), 1e-30)
            for name, array in first.items()
            if name in second and second[name].shape == array.shape
        }
        mx.eval(apart)
        pairs = [(name, float(str(value.item()))) for name, value in apart.items()]
        return sorted(pairs, key=lambda pair: -pair[1])

    def _parameters(self) -> Iterable[tuple[str, mx.array]]:
        alone = len(self.modules) == 1
        for name, module in self.modules.items():
            flat: Any = tree_flatten(module.parameters())
            for path, array in flat:
                yield (path if alone else f"{name}.{path}"), array

    def reset(self) -> None:
        """Go to the beginning, and forget all steps, branches and edits."""
        while self.branches.current.parent:
            self.branches.switch(self.branches.current.parent)
        self.to(0)
        self.forget_all()
        self.counters["tip"] = 0
        self.go_on_with(Branches())
        self.note("reset")

    def forget_all(self) -> None:
        """Forget all steps that were taken, with what was measured."""
        for branch in list(self.branches):
            self.history.drop(branch.name)
            self.samples.drop(branch.name)
            self.snapshots.forget(branch.name)

    def go_on_with(self, branches: Branches) -> None:
        """Have these branches from here on; the state of now is their beginning."""
        self.branches = branches
        self._write_book()
        self.program.refresh()
        self.keep(pinned=True)

    # -- edits -------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Change settings from the next step on: ``set(learning_rate=1e-3, clip=1)``.

        Raises
        ------
        UsageError
            One does not exist or cannot have that value; then none is changed.
        """
        checked = {name: self.settings.check(name, value) for name, value in values.items()}
        for name, value in checked.items():
            self._edit(Edit(self.step, "set", name, value))

    def freeze(self, path: str) -> None:
        """Train a layer no more."""
        part(self.modules, path)
        self._edit(Edit(self.step, "freeze", path))

    def unfreeze(self, path: str) -> None:
        """Train a layer again."""
        part(self.modules, path)
        self._edit(Edit(self.step, "unfreeze", path))

    def restart_batches(self) -> None:
        """Begin with the first batch again."""
        if not self.batches.again:
            raise UsageError("batches of an iterator cannot be begun again: give a sequence")
        self._edit(Edit(self.step, "restart", "batches"))

    def _edit(self, edit: Edit) -> None:
        branch = self.branches.current
        if self.step < branch.tip or len(branch.edits) > self.counters["edits"]:
            self.branch()  # what was done from here on stays what it was
        self.branches.current.edits.append(edit)
        self._apply(edit)
        self._write_book()
        self.program.refresh()
        PROTECTION.commit()
        self.note(str(edit))

    def apply_edits(self) -> None:
        """Make the edits again that were made after the step that it is at."""
        edits = self.branches.current.edits
        while self.counters["edits"] < len(edits) and (
            edits[self.counters["edits"]].step == self.step
        ):
            self._apply(edits[self.counters["edits"]])
            self.program.refresh()

    def _apply(self, edit: Edit) -> None:
        if edit.kind == "set":
            self.settings.set(edit.name, edit.value)
        elif edit.kind == "restart":
            self.counters["position"] = 0
        else:
            module = part(self.modules, edit.name)
            module.freeze() if edit.kind == "freeze" else module.unfreeze()
        self.counters["edits"] += 1

    def script(self) -> str:
        """A program that takes the steps to here again, see `script.script`."""
        branch = self.branches.current
        return script(branch.name, self.step, branch.edits[: self.counters["edits"]])

    def equalize(self, rank: int) -> int:
        """Give all ranks the state of one, bit by bit; the number of arrays.

        Raises
        ------
        UsageError
            There is no such rank, or there are sharded layers; nothing was changed.
        """
        count = copy_from(rank, self._roots, self.group)
        mx.eval(self._roots)
        self.program.refresh()
        self.keep()
        self.note(f"the state of rank {rank} on all ranks")
        return count

    @property
    def frozen(self) -> list[str]:
        """The layers of which nothing is trained."""
        return frozen_parts(self.modules)

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
        if (
            self.snapshots.find(
                self.branches.of_step(self.branches.current.name, self.step), self.step
            )
            is None
        ):
            self.keep()

    def settle_tip(self, tip: int) -> None:
        """Forget steps that not all ranks have completed."""
        branch = self.branches.current
        tip = max(tip, self.step)
        if branch.tip > tip:
            self.history.truncate(branch.name, tip)
            self.samples.truncate(branch.name, tip)
            self.snapshots.forget_after(branch.name, tip)
        branch.tip = self.counters["tip"] = tip


def in_words(steps: Iterable[int]) -> str:
    """Numbers in ascending order, as ``0, 40, 60-100``."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        elif not runs or step != runs[-1][1]:
            runs.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
