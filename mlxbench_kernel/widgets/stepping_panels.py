"""What stands beside the curves of a stepper: branches, kept steps, the journal and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as ui

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.mirror import Branch, KeptStep, State
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets.controls import Ask, button, field, number, row, sure, wanted
from mlxbench_kernel.widgets.stepping_page import journal_lines, lines
from mlxbench_kernel.widgets.stepping_source import Stepping
from mlxbench_kernel.widgets.table import Table

WIDE = {"width": "auto"}
MOST_COMPARED = 50
MOST_KEPT = 500
GIGABYTE = 1e9


def choose_among(chooser: Any, options: Sequence[tuple[str, Any]]) -> None:
    """Offer other options, and leave the choice as it is if it is still among them."""
    if tuple(chooser.options) == tuple(options):
        return
    before = chooser.value
    with chooser.hold_sync():
        chooser.options = options
        values = [value for _, value in options]
        chooser.value = before if before in values else None


class Branches:
    """The branches: switch, delete, compare.

    Parameters
    ----------
    stepping, ask
        As of `Movement`.
    """

    title = "Branches"

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.chooser = ui.Select(options=[], rows=6, layout=WIDE)
        self.other = ui.Dropdown(options=[], layout={"width": "10em"}, tooltip="branch to compare")
        self.compared = ui.HTML()
        self.widget = ui.VBox(
            [
                self.chooser,
                row(
                    button("Switch", self._switch, tooltip="Step this branch"),
                    sure("Delete", self._delete, tooltip="Forget this branch and its steps"),
                ),
                row(button("Compare with", self._compare), self.other),
                self.compared,
            ]
        )

    def show(self, state: State) -> None:
        """Show the branches that there are."""
        choose_among(
            self.chooser, [(_of_branch(each, state), each.name) for each in state.branches]
        )
        choose_among(self.other, [(each.name, each.name) for each in state.branches])

    def _chosen(self) -> str:
        if self.chooser.value is None:
            raise UsageError("no branch is chosen: click one in the list")
        return str(self.chooser.value)

    def _switch(self) -> None:
        self._ask(
            f"switching to {self.chooser.value}", lambda: self._stepping.switch(self._chosen())
        )

    def _delete(self) -> None:
        self._ask(f"deleting {self.chooser.value}", lambda: self._stepping.delete(self._chosen()))

    def _compare(self) -> None:
        def command() -> None:
            if self.other.value is None:
                raise UsageError("choose the branch to compare with, beside the button")
            one, other = self._chosen(), str(self.other.value)
            found = sorted(self._stepping.compare(one, other), key=lambda each: -each[1])
            rows = [[name, f"{by:.4g}"] for name, by in found[:MOST_COMPARED]]
            more = f", the first {MOST_COMPARED} shown" if len(found) > MOST_COMPARED else ""
            caption = f"{one} and {other}: {len(found)} parameters{more}"
            table = Table(["parameter", "differs by"], rows, caption)
            self.compared.value = f'<div class="mlxbench-step-lines">{table._repr_html_()}</div>'

        self._ask(f"comparing {self.chooser.value} with {self.other.value}", command)


class Kept:
    """The steps that are kept, what they cost, and checkpoints.

    Parameters
    ----------
    stepping, ask
        As of `Movement`.
    """

    title = "Kept steps and checkpoints"

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.used = ui.FloatProgress(min=0, max=1, layout=WIDE)
        self.said = ui.HTML()
        self.budget = field("budget in GB", self._keep, "8em")
        self.chooser = ui.Select(options=[], rows=7, layout=WIDE)
        self.path = field("folder of a checkpoint", self._save, "14em")
        self.widget = ui.VBox(
            [
                self.said,
                self.used,
                row(self.budget, button("Set budget", self._keep)),
                self.chooser,
                row(
                    button("Go there", self._go, tooltip="Go to the chosen step"),
                    button("Branch there", self._branch, tooltip="Begin a branch at this step"),
                ),
                self.path,
                row(button("Save", self._save, "save"), sure("Load", self._load, "folder-open")),
            ]
        )

    def show(self, state: State) -> None:
        """Show what is kept."""
        disk = sum(each.on_disk for each in state.kept)
        spilled = sum(each.bytes for each in state.kept if each.on_disk)
        on_disk = f"; {disk} on disk ({format_bytes(spilled)})" if disk else ""
        said = (
            f"{len(state.kept)} steps kept, {format_bytes(state.used)} of "
            f"{format_bytes(state.budget)}{on_disk}"
        )
        self.said.value = escape(said)
        share = min(state.used / state.budget, 1.0) if state.budget else 0.0
        self.used.value = round(share, 3)
        latest = sorted(state.kept, key=lambda each: each.step, reverse=True)[:MOST_KEPT]
        choose_among(self.chooser, [(_of_kept(each), (each.branch, each.step)) for each in latest])

    def _chosen(self) -> tuple[str, int]:
        if self.chooser.value is None:
            raise UsageError("no step is chosen: click one in the list of kept steps")
        branch, step = self.chooser.value
        return str(branch), int(step)

    def _there(self) -> int:
        """The chosen step, after switching to its branch."""
        branch, step = self._chosen()
        if branch != self._stepping.state.branch:
            self._stepping.switch(branch)
        return step

    def _go(self) -> None:
        self._ask("going to a kept step", lambda: self._stepping.to(self._there()))

    def _branch(self) -> None:
        self._ask("beginning a branch", lambda: self._stepping.branch(at=self._there()))

    def _keep(self) -> None:
        text = self.budget.value

        def command() -> None:
            gigabytes = number("the budget", text)
            if not 0 <= gigabytes < 1e6:
                raise UsageError(f"the budget is to be {text} GB: type a number of GB from 0 up")
            self._stepping.keep(round(gigabytes * GIGABYTE))
            self.budget.value = ""

        self._ask("setting the budget", command)

    def _save(self) -> None:
        path = self.path.value
        self._ask(f"saving {path}", lambda: self._stepping.save(wanted(path, "the folder")))

    def _load(self) -> None:
        path = self.path.value
        self._ask(f"loading {path}", lambda: self._stepping.load(wanted(path, "the folder")))


class Journal:
    """What was changed, and the run as a script.

    Parameters
    ----------
    stepping, ask
        As of `Movement`.
    """

    title = "Journal"

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.entries, self.script = ui.HTML(), ui.HTML()
        self.widget = ui.VBox(
            [
                self.entries,
                row(button("As a script", self._script, "file-code-o", "The run as a script")),
                self.script,
            ]
        )

    def show(self, state: State) -> None:
        """Show the journal."""
        self.entries.value = journal_lines(state.journal)

    def _script(self) -> None:
        def command() -> None:
            self.script.value = lines(self._stepping.script())

        self._ask("writing the script", command)


class Repair:
    """What can be done about why the stepper stopped, above the curves.

    Parameters
    ----------
    stepping, ask
        As of `Movement`.
    """

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.rank = ui.Dropdown(
            options=[(f"rank {rank}", rank) for rank in range(stepping.size)],
            layout={"width": "7em"},
            tooltip="rank to copy",
        )
        self.replicas = row(
            ui.Label("Copy the state of"),
            self.rank,
            ui.Label("to the others:"),
            button("Copy", self._equalize, "clone"),
        )
        self.batches = row(
            button("Begin the batches again", self._restart, "repeat", "From the first batch")
        )
        self.widget = ui.VBox([self.replicas, self.batches])
        for part in (self.replicas, self.batches):
            part.layout.display = "none"

    def show(self, state: State) -> None:
        """Offer what helps."""
        for part, reason in ((self.replicas, "replicas differ"), (self.batches, "out of batches")):
            part.layout.display = "" if reason in state.said else "none"

    def _equalize(self) -> None:
        rank = int(self.rank.value)
        self._ask(
            f"copying the state of rank {rank} to the others",
            lambda: self._stepping.equalize(rank),
        )

    def _restart(self) -> None:
        self._ask("beginning the batches again", self._stepping.restart_batches)


def _of_branch(branch: Branch, state: State) -> str:
    here = "● " if branch.name == state.branch else ""
    left = f", from {branch.parent}" if branch.parent else ""
    return f"{here}{branch.name}: {branch.start}–{branch.tip}{left}"


def _of_kept(kept: KeptStep) -> str:
    where = ", on disk" if kept.on_disk else ""
    return f"{kept.branch} step {kept.step}: {format_bytes(kept.bytes)}{where}"
