"""Taking steps until something stops them: the fourth part of `Stepper`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.lines import calling_line
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import building
from mlxbench_kernel.training.conditions import still_to_come
from mlxbench_kernel.training.exchange import gather_numbers
from mlxbench_kernel.training.loop import SAMPLED, Loop
from mlxbench_kernel.training.outcome import Kind
from mlxbench_kernel.training.program import Program
from mlxbench_kernel.training.rehearsal import rehearse
from mlxbench_kernel.training.sampling import Sampling
from mlxbench_kernel.training.stopping import Stopping
from mlxbench_kernel.training.taken import Agreed, Stop, Taken
from mlxbench_kernel.training.validating import LOSS, Validation

if TYPE_CHECKING:
    from mlxbench_kernel.training.origin import StepGraph


class Running(Stopping):
    """A run that takes steps, on all ranks alike."""

    loop: Loop
    sampling: Sampling
    validation: Validation
    report: Any
    warnings: list[str]
    stopped: str
    broke: str  # the name of the breakpoint that it stopped at
    _check: bool
    rehearsed: bool
    exact = True  # steps that are taken again give the same, as far as is known
    metrics: set[str]
    _names: dict[str, Module]
    _builds_ahead = False

    @property
    def measured(self) -> list[str]:
        """What conditions may name."""
        raise NotImplementedError

    # -- forwards --------------------------------------------------------------

    def run(self, steps: int | None = None, until: str | None = None) -> Stop:
        """Take steps, on all ranks alike.

        Parameters
        ----------
        steps
            How many; by default until something stops it.
        until
            A condition, as ``"loss < 0.1"``; see `Condition`.

        Returns
        -------
        Stop
            Why it stopped: all ranks after the same step.

        Raises
        ------
        UsageError
            The condition is wrong, the ranks are not at the same step, or the step is no
            training step.
        """
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise UsageError(f"run takes a number of steps, as run(100), not {steps!r}")
        self.wanted = (None if steps is None else self.step + steps), until
        self.doing, self.said, self.stopped, self.broke = "playing", "", "", ""
        try:
            noted = len(self.warnings)
            stop = self._run(steps, until)
            stop = replace(stop, text=". ".join([stop.text, *self.warnings[noted:]]))
            self.said, self.stopped, self.broke = stop.text, stop.kind, stop.name
        finally:
            self.doing = "paused"
            self.report.look()
        return stop

    def stop(self) -> None:
        """Have a run stop soon, on all ranks after the same step; from any thread."""
        self.loop.stop()

    def _run(self, steps: int | None, until: str | None) -> Stop:
        self._begin(steps, until is not None)
        try:
            if GROUP.lasting:
                self.program.site = GROUP.site(calling_line(sys._getframe()).text)
            stop, taken = self._steps(steps, until)
        except BaseException:
            if self.group.size() == 1:  # else the others have to be asked
                self._catch_up()
            raise
        finally:
            self.loop.builder.discard()
            self.program.site = self.group
        self._rewind(stop)
        self.loop.builder.raise_interrupt()
        return self._explained(stop, taken)

    def _steps(self, steps: int | None, until: str | None) -> tuple[Stop, Taken]:
        """Take steps until something stops them; why that is, and after which one."""
        condition = None if until is None else still_to_come(until, self.measured, self.step)
        breaks = self.breakpoints.conditions(self.measured)
        last = math.inf if steps is None else self.step + steps
        keeping = self.keeping
        keeping.begin(last)
        # A condition may hold after any step, and steps of the user's own are not taken again
        # unasked. Without gradients to average nothing else keeps the ranks together, either.
        alone = condition is not None or not isinstance(self.program, Program)
        wanted = {name for each in breaks.values() for name in each.names} - {"nonfinite"}
        wanted |= condition.names if condition is not None else set()
        always = bool(wanted.intersection(SAMPLED))
        lease, first = 1, self.step + 1
        while True:
            left = int(min(lease, keeping.end - self.step))
            after = int(min(lease, keeping.end - self.step - left))
            agreed = self._run_lease(left, always, after if self.step >= first else 0)
            if self.step == first:
                PROTECTION.settle()  # data that the first step has evaluated, for one
            if not alone:
                lease = agreed.lease
                if self.batches.again and self.exact:  # else what is not kept is lost
                    keeping.note(agreed.seconds)
            if agreed.stop and keeping.end == last:
                keeping.end_soon(self.step)
                self._keep()
            for count, taken in enumerate(agreed.taken, 1):
                stop = self._decided(taken, agreed, last, condition, breaks)
                if stop is not None:
                    self._record(agreed.taken[:count])
                    return stop, taken
            self._record(agreed.taken)

    def _run_lease(self, steps: int, measured: bool, after: int) -> Agreed:
        """Take so many steps; fewer where all ranks have to compare something after one.

        Parameters
        ----------
        steps, measured
            How many, and whether each is a measured one.
        after
            How many steps are likely to follow on these; 0 where none may be built ahead.
        """
        begin = self.step
        ahead = steps + min(after, 1)
        looks = {number: self._looks(begin + number) for number in range(1, ahead + 1)}
        steps = next((number for number in range(1, steps) if any(looks[number])), steps)
        agreed = None
        for number in range(1, steps + 1):
            due = self.sampling.due() or measured
            following = None
            if self._builds_ahead and number + 1 in looks and self._may_build_ahead(looks[number]):
                ends = number + 1 in (steps, steps + after) or any(looks[number + 1])
                following = Kind(self.sampling.is_next or measured, ends)
            agreed = self._take(due, number == steps, following)
            if self.keeping.due(self.step):
                self._keep()
        assert agreed is not None
        compares, validates = looks[steps]
        self.sampling.note(agreed.plain, agreed.full)
        self.replicas.note(agreed.comparing, agreed.seconds)
        if compares:
            began = time.perf_counter()
            differ = float(self.replicas.differ())
            self.loop.comparing = time.perf_counter() - began
            agreed.taken[-1].shared["replicas_differ"] = differ
            agreed.taken[-1].record["replicas_differ"] = differ
        if validates and not agreed.taken[-1].again:
            self._validate(agreed)
        return agreed

    def _looks(self, step: int) -> tuple[bool, bool]:
        """Whether replicas are compared after a step, and whether it is validated."""
        return self.replicas.due(step), self.validation.due(step)

    def _may_build_ahead(self, looks: tuple[bool, bool]) -> bool:
        """Whether nobody can tell that a step is built while the one before it runs.

        Of `looks` is what is to be looked at after that one, see `_looks`.
        """
        taken_before = self.step < self.counters["tip"]
        edited = len(self.branches.current.edits) > self.counters["edits"]
        return not any(looks) and not taken_before and not edited

    def _validate(self, agreed: Agreed) -> None:
        """Measure the state after a lease by what it is not trained on."""
        taken, self.doing = agreed.taken[-1], "validating"
        try:
            taken.shared[LOSS] = taken.record[LOSS] = self.validation.measure()
        except BaseException:  # that breaks this off, and not the steps, which are complete
            self._record(agreed.taken)
            raise
        self.doing = "playing"
        self.note(f"validation loss {taken.record[LOSS]:.4g}")

    def advance(self, measured: bool = False) -> Taken:
        """Take one step of the current branch, keep its state, and note what was measured."""
        self._catch_up()
        return self._advance(measured)

    def _advance(self, measured: bool = False) -> Taken:
        agreed = self._take(measured, last=True)
        self._keep()
        assert agreed is not None
        self._record(agreed.taken)
        return agreed.taken[-1]

    def _take(self, measured: bool, last: bool, following: Kind | None = None) -> Agreed | None:
        counters = self.counters
        again = self.step < counters["tip"]
        self.apply_edits()
        agreed = self.loop.take(measured, again, last, following)
        counters["tip"] = max(counters["tip"], counters["step"])
        self.branches.current.tip = counters["tip"]
        return agreed

    def _keep(self) -> None:
        self.keep(random=self.loop.builder.key)

    def _record(self, taken: Sequence[Taken]) -> None:
        """Those of a lease that have not been taken before; it is over then."""
        branch = self.branches.current.name
        new = [each for each in taken if not each.again]
        if new:
            self.history.extend(branch, [each.record for each in new])
        for each in new:
            self.learn(each)
            if each.samples:
                self.samples.append(branch, int(each.shared["step"]), each.samples)
        self.loop.settle()

    def warn(self, text: str) -> None:
        """Say something with the end of a run, and in the journal."""
        self.warnings.append(text)
        self.note(text)

    def learn(self, taken: Taken) -> None:
        """Take note of the names of the user's own metrics."""
        self.metrics.update(taken.shared)

    def _begin(self, steps: int | None, named: bool) -> None:
        """See that all ranks are to do the same."""
        self._see_replaced()
        self.rejoin()
        self.refresh()
        self.apply_edits()  # the batches may begin anew
        position, length = self.counters["position"], self.batches.length
        has = self.batches.steps_left(position, self.accumulate) > 0
        own = [self.step, self._reached(), steps or 0, has, length or -1, self._gains()]
        own += [self.exact, self.replicas.interval]
        rows = gather_numbers([*own, *self.sampling.standing()], self.group)
        self.sampling.agree(rows[:, len(own) :])
        self.replicas.agree(int(rows[:, 7].max()))
        self.exact = bool(rows[:, 6].all())  # one that was started anew has not rehearsed
        for column, what in ((0, "are at steps"), (2, "were asked for steps")):
            if len(set(rows[:, column])) > 1:
                said = ", ".join(f"{value:g} (rank {r})" for r, value in enumerate(rows[:, column]))
                raise UsageError(
                    f"Stepper: the ranks {what} {said}: call it on all ranks alike, or "
                    "stepper.to(step) on all of them"
                )
        self.settle_tip(int(rows[:, 1].min()))
        self._catch_up()
        lacking = [rank for rank, there in enumerate(rows[:, 3]) if not there]
        if lacking:
            raise UsageError(self._out_of_batches(lacking))
        self.loop.begin()
        if not self.rehearsed and self.step == 0 and (self._check or named):
            noted = rehearse(self)
            self.exact = not noted
            for line in noted:
                self.warn(line)
        self.rehearsed = True
        # A batch may have drawn from generators of others.
        self._builds_ahead = bool(rows[:, 5].all()) and not self.snapshots.generators

    def _reached(self) -> int:
        """The last step that was taken, and is recorded or still can be.

        Beyond may be some of a lease that an interrupt has kept from being undone.
        """
        reached = max(self.recorded(), self.step, self.loop.unread()[1])
        return min(int(self.counters["tip"]), reached)

    def _gains(self) -> bool:
        """Whether steps are faster here where they are built ahead."""
        return (
            building.helps()
            and isinstance(self.program, Program)
            and self.program.is_lazy(self.accumulate)
            and native.load() is not None
        )

    def _catch_up(self) -> None:
        """Record the steps of a lease that a fault has ended, as far as all ranks have kept them;
        on all ranks alike."""
        rows = gather_numbers([self.counters["tip"], *self.loop.unread()], self.group)
        tip = int(rows[:, 0].min())
        firsts, lasts = set(rows[:, 1]), set(np.minimum(rows[:, 2], tip))
        # A rank that was started again has none of them.
        together = len(firsts) == len(lasts) == 1
        recorded = self.recorded()
        found = [each for each in self.loop.read(tip, together) if each.record["step"] > recorded]
        if found and found[0].record["step"] == recorded + 1:
            self._record(found)

    def _see_replaced(self) -> None:
        for name, old in self._names.items():
            now = PROTECTION.namespace.get(name)
            if isinstance(now, Module) and now is not old:
                self.warn(
                    f"{name} was assigned again since the stepper was made, which still trains "
                    "the old one: make a new Stepper for the new one"
                )
                self._names = {**self._names, name: now}

    def graph(self) -> StepGraph:
        """The lazy graph of the last step, and the first operation in it that gave NaN or Inf.

        The step is evaluated once more for it, on all ranks alike and by each alone; the state is
        the same afterwards.
        """
        from mlxbench_kernel.training.origin import step_graph

        return step_graph(self)
