"""Where a run stops, and why: the third part of `Stepper`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlxbench_kernel.training.batches import out_of_batches
from mlxbench_kernel.training.breakpoints import Breakpoints
from mlxbench_kernel.training.conditions import Condition
from mlxbench_kernel.training.course import Course
from mlxbench_kernel.training.keeping import MOST, Keeping
from mlxbench_kernel.training.taken import Agreed, Stop, Taken
from mlxbench_kernel.training.watching import ReplicaWatch

if TYPE_CHECKING:
    from mlxbench_kernel.training.origin import StepGraph

OPENS = "%mlx_step graph opens the graph there"


class Stopping(Course):
    """A run that stops on all ranks after the same step."""

    replicas: ReplicaWatch
    breakpoints: Breakpoints
    keeping: Keeping

    def graph(self) -> StepGraph:
        """The lazy graph of the last step, and the first operation in it that gave NaN or Inf."""
        raise NotImplementedError

    def _decided(
        self,
        taken: Taken,
        agreed: Agreed,
        last: float,
        condition: Condition | None,
        breaks: Mapping[str, Condition],
    ) -> Stop | None:
        """Whether to stop after a step: by what all ranks know alike.

        It was asked for those up to the step `last`.
        """
        step = int(taken.shared["step"])
        held = [name for name, each in breaks.items() if each.holds(taken.shared)]
        if held:
            return Stop("breakpoint", "", step, held[0])
        if condition is not None and condition.holds(taken.shared):
            return Stop("condition", f"step {step}: {condition.text} holds", step)
        if taken is not agreed.taken[-1]:
            return None
        if step == last:
            return Stop("done", f"step {step}", step)
        if agreed.lacking and not self._restarts_batches():
            return Stop("batches", self._out_of_batches(agreed.lacking), step)
        if step == self.keeping.end:
            return Stop("paused", f"paused after step {step}", step)
        return None

    def _rewind(self, stop: Stop) -> None:
        """Undo the steps of a lease after one that a run stops at, and see that this one, and the
        one before it, are kept: to go back there at once."""
        step, kept = stop.step, self.kept_at(stop.step)
        pinned = kept is not None and kept.pinned
        # Where there is little room for states it may be a long way.
        sparse = self.keeping.every > 1 and stop.kind not in ("done", "paused")
        if sparse and step - self._common(step - 1).step <= MOST:
            self.to(step - 1)
        if step != self.step:
            tip = self.counters["tip"]
            self.to(step)
            if tip > step and self.recorded() <= step:
                self.settle_tip(step)
        if (kept := self.kept_at(step)) is not None:
            kept.pinned = pinned  # nobody has gone away from it

    def _restarts_batches(self) -> bool:
        """Whether the batches begin anew with the next step, by an edit made here before."""
        edits = self.branches.current.edits[self.counters["edits"] :]
        return any(each.kind == "restart" and each.step == self.step for each in edits)

    def _explained(self, stop: Stop, taken: Taken) -> Stop:
        """The stop with more to say of it, where it is a breakpoint."""
        step, name = stop.step, stop.name
        if stop.kind != "breakpoint":
            return stop
        condition = self.breakpoints.known[name]
        called = "" if name == condition else f" {name}"  # one of the user's own is its name
        text = f"step {step}: breakpoint{called}: {condition} holds"
        if name == "replicas":
            text = f"step {step}: {self.replicas.said}"
        elif name == "nonfinite":
            text = f"step {step}: loss is {taken.shared['loss']:g}; {self.graph().said}; {OPENS}"
        return replace(stop, text=text)

    def _out_of_batches(self, ranks: Sequence[int]) -> str:
        return out_of_batches(self.step, ranks, self.group.size(), self.batches.again)
