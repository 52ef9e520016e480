"""Other courses of a run: branches, edits, and the state of another rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.branches import Branches, Edit
from mlxbench_kernel.training.place import Place
from mlxbench_kernel.training.replicas import copy_from, refuse_copy
from mlxbench_kernel.training.script import script
from mlxbench_kernel.training.settings import frozen_parts, over, part, value_of
from mlxbench_kernel.training.unfreezing import Unfreezing


class Course(Place):
    """A run that can leave its course; the second part of `Stepper`."""

    unfreezing: Unfreezing

    # -- branches ----------------------------------------------------------------

    def branch(self, name: str = "", at: int | None = None) -> str:
        """Begin another course from here, or from an earlier step; the old one is kept.

        Returns
        -------
        str
            What it is called.
        """
        self._catch_up()
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
        self._go_to_tip(str(name))
        self.note(f"switched from {before}")

    def _go_to_tip(self, name: str) -> None:
        self._catch_up()
        before = self.branches.current.name
        self._be_on(name)
        try:
            self.to(self.branches.current.tip)
        except UsageError:
            self._be_on(before)
            raise

    def _be_on(self, name: str) -> None:
        self.counters["tip"] = self.branches.switch(name).tip
        self._write_book()

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
                self._go_to_tip(name)
                found.append({path: frozen.handle(each) for path, each in self._parameters()})
        finally:
            self._be_on(here)
            self.to(step)
        first, second = found
        apart = {
            name: mx.linalg.norm((second[name] - array).astype(mx.float32).reshape(-1))
            / mx.maximum(mx.linalg.norm(array.astype(mx.float32).reshape(-1)), 1e-30)
            for name, array in first.items()
            if name in second and second[name].shape == array.shape
        }
        mx.eval(apart)
        pairs = [(name, value_of(value)) for name, value in apart.items()]
        return sorted(pairs, key=lambda pair: -pair[1])

    def _parameters(self) -> Iterable[tuple[str, mx.array]]:
        def inside(module: Module) -> Any:
            return tree_flatten(module.parameters())

        return over(self.modules, inside)

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
        self.refresh()
        self.keep(pinned=True)

    # -- edits -------------------------------------------------------------------

    def set(self, /, **values: Any) -> None:
        """Change settings from the next step on: ``set(learning_rate=1e-3, clip=1)``.

        Raises
        ------
        UsageError
            One does not exist or cannot have that value; then none is changed.
        """
        self.set_all(values)

    def set_all(self, values: Mapping[str, Any]) -> None:
        """As `set`, of settings whatever their names are."""
        checked = {name: self.settings.check(name, value) for name, value in values.items()}
        for name, value in checked.items():
            self._edit(Edit(self.step, "set", name, value))

    def set_budget(self, budget: int) -> None:
        """Take so many bytes of memory at most for the states that are kept."""
        self.snapshots.set_budget(budget)

    def freeze(self, path: str) -> None:
        """Train a layer no more."""
        part(self.modules, path)
        self._edit(Edit(self.step, "freeze", path))

    def unfreeze(self, path: str) -> None:
        """Train a layer again: what was trained of it when the stepper was made, or all of it where
        nothing was.

        Raises
        ------
        UsageError
            There is no such layer, or it has weights that cannot be trained.
        """
        hindrance = self.unfreezing.hindrance(part(self.modules, path))
        if hindrance:
            raise UsageError(
                f"{path} cannot be trained: its {hindrance} holds whole numbers, as quantized "
                "weights do; train adapters beside it"
            )
        self._edit(Edit(self.step, "unfreeze", path))

    def restart_batches(self) -> None:
        """Begin with the first batch again."""
        if not self.batches.again:
            raise UsageError("batches of an iterator cannot be begun again: give a sequence")
        self._edit(Edit(self.step, "restart", "batches"))
        self.said = ""  # that they have run out

    def _edit(self, edit: Edit) -> None:
        branch = self.branches.current
        if self.step < branch.tip or len(branch.edits) > self.counters["edits"]:
            self.branch()  # what was done from here on stays what it was
        self.branches.current.edits.append(edit)
        try:
            self._apply(edit)
        except BaseException:  # it could not be made, and is not to be tried again at each step
            self.branches.current.edits.pop()
            raise
        self._write_book()
        self.refresh()
        PROTECTION.commit()
        self.note(str(edit))

    def apply_edits(self) -> None:
        """Make the edits again that were made after the step that it is at."""
        edits = self.branches.current.edits
        while self.counters["edits"] < len(edits) and (
            edits[self.counters["edits"]].step == self.step
        ):
            self._apply(edits[self.counters["edits"]])
            self.refresh()

    def freeze_again(self) -> None:
        """Freeze layers as the edits until now say, which no array tells."""
        for edit in self.branches.current.edits[: self.counters["edits"]]:
            if edit.kind in ("freeze", "unfreeze"):
                self._freeze(edit)
        self.refresh()

    def _freeze(self, edit: Edit) -> None:
        module = part(self.modules, edit.name)
        if edit.kind == "freeze":
            module.freeze()
            return
        self.unfreezing.unfreeze(module)
        self.program.train_more()
        mx.eval(self._roots)

    def _apply(self, edit: Edit) -> None:
        if edit.kind == "set":
            self.settings.set(edit.name, edit.value)
        elif edit.kind == "restart":
            self.counters["position"] = 0
        elif edit.kind == "equalize":
            copy_from(int(edit.name), self._roots, self.group)
            mx.eval(self._roots, mx.random.state)
        else:
            self._freeze(edit)
        self.counters["edits"] += 1

    def script(self) -> str:
        """A program that takes the steps to here again, see `script.script`."""
        branch = self.branches.current
        return script(branch.name, self.step, branch.edits[: self.counters["edits"]])

    def equalize(self, rank: int) -> None:
        """Give all ranks the state of one, bit by bit.

        Raises
        ------
        UsageError
            There is no such rank, or there are sharded layers; nothing was changed.
        """
        refuse_copy(rank, self._roots, self.group)
        self._edit(Edit(self.step, "equalize", str(rank)))
        self.keep()
        self.said = ""  # that they differ

    @property
    def frozen(self) -> list[str]:
        """The layers of which nothing is trained."""
        return frozen_parts(self.modules)
