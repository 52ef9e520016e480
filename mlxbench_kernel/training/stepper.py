"""`Stepper`: a training run that can be stepped forwards and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank.frozen import containers
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import saving
from mlxbench_kernel.training.batches import Batches
from mlxbench_kernel.training.breakpoints import Breakpoints
from mlxbench_kernel.training.conditions import Condition
from mlxbench_kernel.training.course import Course
from mlxbench_kernel.training.exchange import gather_numbers
from mlxbench_kernel.training.given import optimizers_of, trees_of
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.loop import SAMPLED, Agreed, Loop, Stop, Taken
from mlxbench_kernel.training.program import CustomProgram, Loss, Program
from mlxbench_kernel.training.rehearsal import rehearse
from mlxbench_kernel.training.report import Report
from mlxbench_kernel.training.sampling import Sampling
from mlxbench_kernel.training.settings import Settings
from mlxbench_kernel.training.watching import ReplicaWatch

PROTECTED = "stepper"  # what its state is called among what is protected


class Stepper(Course):
    """A training run, step by step, forwards and back; on all ranks alike.

    Whatever all ranks call here, all have to call alike, as collectives. A step is run once more
    at the very beginning, to see that it depends on nothing but its state.

    Parameters
    ----------
    model, optimizer, loss_fn
        ``loss_fn(model, *batch)`` gives the loss, or ``(loss, metrics)`` with a dict of numbers.
        Gradients are averaged over the ranks as ``mlx.nn.average_gradients`` does.
    batches
        A sequence of batches; a function of the number of a batch, from 0; or an iterator, of
        which one can go back as far as its batches are kept (the last 256). A batch that is a
        tuple or list gives several arguments.
    step, state
        Instead of the first three: ``step(*batch)`` trains and returns the loss,
        ``(loss, metrics)`` or a dict with ``"loss"``; `state` names all that it changes:
        modules, optimizers, dicts and lists of arrays.
    accumulate
        Batches for each step, whose gradients are averaged.
    compile
        Whether the step runs through ``mx.compile``.
    clip
        Largest norm of the averaged gradients; None for any.
    budget
        Bytes of memory for the states that are kept to go back to; by default an eighth of what
        the host has free.
    replicas
        Every so many steps the parameters of all ranks are compared; 0 for never.
    check
        Whether the first step is run twice more, see `rehearse`.

    Attributes
    ----------
    history : History
        What was measured, step by step.
    samples : ParameterHistory
        What was measured for each parameter, at some steps.
    branches : Branches
        The courses that were taken.

    Raises
    ------
    UsageError
        An argument is wrong.

    Examples
    --------
    >>> stepper = Stepper(model, optimizer, loss_fn, batches)
    >>> stepper.run(100)
    >>> stepper.back(10)
    >>> stepper.set(learning_rate=1e-3)
    >>> stepper.run(until="loss < 0.1")
    """

    def __init__(
        self,
        model: Module | None = None,
        optimizer: optim.Optimizer | None = None,
        loss_fn: Loss | None = None,
        batches: Any = None,
        *,
        step: Loss | None = None,
        state: Mapping[str, Any] | None = None,
        accumulate: int = 1,
        compile: bool = False,
        clip: float | None = None,
        budget: int | None = None,
        replicas: int = 50,
        check: bool = True,
    ) -> None:
        trees = trees_of(model, optimizer, loss_fn, batches, step, state)
        if step is not None and (accumulate != 1 or compile or clip is not None):
            raise UsageError(
                "Stepper: with a step of your own, accumulate, compile and clip are its matter"
            )
        if not isinstance(accumulate, int) or accumulate < 1:
            raise UsageError(f"Stepper: accumulate is a number of batches, not {accumulate!r}")
        self.trees = trees
        self.modules = {name: tree for name, tree in trees.items() if isinstance(tree, Module)}
        self.group = mx.distributed.init()
        counters: dict[str, Any] = {
            "step": 0, "position": 0, "edits": 0, "tip": 0, "clip": None, "shuffle": None,
            "book": "",
        }  # fmt: skip
        self.program: Program | CustomProgram
        if step is None:
            assert model is not None and optimizer is not None and loss_fn is not None
            optimizer.init(model.trainable_parameters())
            self.program = Program(model, optimizer, loss_fn, compile, self.group)
        else:
            self.program = CustomProgram(step, self.modules, self.group)
        optimizers = optimizers_of(trees)
        source = Batches(batches)
        own = (["clip"] if step is None else []) + (["shuffle"] if source.length else [])
        settings = Settings(optimizers, counters, own)
        if clip is not None:
            counters["clip"] = settings.check("clip", clip)
        roots = [counters, *map(containers, trees.values())]
        mx.eval(roots, mx.random.state)
        super().__init__(counters, roots, settings, source, accumulate, budget)
        rates = [each.state for each in optimizers.values() if "learning_rate" in each.state]
        self.loop = Loop(
            self.program, source, accumulate, counters, roots,
            lambda: rates[0]["learning_rate"] if rates else None, self.group,
        )  # fmt: skip
        self.history = History()
        self.samples = ParameterHistory(self.program.names)
        self.sampling = Sampling()
        self.replicas = ReplicaWatch(self.modules, self.group, replicas)
        self.breakpoints = Breakpoints()
        self.doing, self.stopped = "paused", ""
        self.wanted: tuple[int | None, str | None] = None, None  # the run: to, until
        self.warnings: list[str] = []
        self._check, self._rehearsed = check, False
        self._metrics: set[str] = set()
        self._names = {
            name: value
            for name, value in PROTECTION.namespace.items()
            if isinstance(value, Module) and any(value is each for each in self.modules.values())
        }
        PROTECTION.protect({PROTECTED: roots})
        self.refresh()
        self.keep(pinned=True)
        self.report = Report(self)
        _made[:] = [self]

    def __repr__(self) -> str:
        return f"<Stepper: step {self.step} of branch {self.branches.current.name}, {self.doing}>"

    @property
    def measured(self) -> list[str]:
        """What conditions may name."""
        known = ["step", "loss", "seconds", "data_seconds", "collective_seconds", "elapsed"]
        known += ["memory", "pool", "replicas_differ", "update_ratio"]
        if self.settings_have("learning_rate"):
            known.append("learning_rate")
        if isinstance(self.program, Program):
            known += ["grad_norm", "nonfinite"]
        return sorted({*known, *self._metrics})

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
        self.doing, self.said, self.stopped = "playing", "", ""
        try:
            noted = len(self.warnings)
            stop = self._run(steps, until)
            stop = replace(stop, text=". ".join([stop.text, *self.warnings[noted:]]))
            self.said, self.stopped = stop.text, stop.kind
        finally:
            self.doing = "paused"
            self.report.look()
        return stop

    def stop(self) -> None:
        """Have a run stop after the step that is being taken, on all ranks; from any thread."""
        self.loop.stop()

    def _run(self, steps: int | None, until: str | None) -> Stop:
        self._begin(steps, until is not None)
        condition = None if until is None else Condition(until, self.measured)
        breaks = self.breakpoints.conditions(self.measured)
        last = None if steps is None else self.step + steps
        wanted = {name for each in breaks.values() for name in each.names} - {"nonfinite"}
        wanted |= condition.names if condition is not None else set()
        always = bool(wanted.intersection(SAMPLED))
        lease = 1
        while True:
            lease = lease if last is None else min(lease, last - self.step)
            agreed = self._run_lease(1 if condition is not None else lease, always)
            lease = agreed.lease
            self.snapshots.stride = max(lease // 2, 1)
            for taken in agreed.taken:
                stop = self._decided(taken, agreed, last, condition, breaks)
                if not taken.again:
                    self._record(taken)
                if stop is not None:
                    self._rewind(stop.step)
                    return self._explained(stop, taken)

    def _run_lease(self, steps: int, measured: bool) -> Agreed:
        """Take so many steps; fewer where all ranks have to compare something after one."""
        while True:
            steps -= 1
            compares = self.replicas.due(self.step + 1)
            due = self.sampling.due() or measured
            agreed = self._take(due, not steps or compares)
            if agreed is not None:
                self.sampling.note(agreed.plain, agreed.full)
                if compares:
                    differ = float(self.replicas.differ())
                    agreed.taken[-1].shared["replicas_differ"] = differ
                    agreed.taken[-1].record["replicas_differ"] = differ
                return agreed

    def _decided(
        self,
        taken: Taken,
        agreed: Agreed,
        last: int | None,
        condition: Condition | None,
        breaks: Mapping[str, Condition],
    ) -> Stop | None:
        """Whether to stop after a step: by what all ranks know alike."""
        step = int(taken.shared["step"])
        held = [name for name, each in breaks.items() if each.holds(taken.shared)]
        if held:
            return Stop("breakpoint", held[0], step)
        if condition is not None and condition.holds(taken.shared):
            return Stop("condition", f"step {step}: {condition.text} holds", step)
        if taken is not agreed.taken[-1]:
            return None
        if step == last:
            return Stop("done", f"step {step}", step)
        if agreed.lacking:
            return Stop("batches", self._out_of_batches(agreed.lacking), step)
        if agreed.stop:
            return Stop("paused", f"paused after step {step}", step)
        return None

    def _rewind(self, step: int) -> None:
        """Undo the steps of a lease after one that a run stops at."""
        if step < self.step:
            tip = self.counters["tip"]
            self.to(step)
            if tip > step and not self.history.last(self.branches.current.name)["step"] > step:
                self.settle_tip(step)

    def advance(self, measured: bool = False) -> Taken:
        """Take one step of the current branch, keep its state, and note what was measured."""
        agreed = self._take(measured, last=True)
        assert agreed is not None
        taken = agreed.taken[-1]
        if not taken.again:
            self._record(taken)
        return taken

    def _take(self, measured: bool, last: bool) -> Agreed | None:
        counters = self.counters
        again = self.step < counters["tip"]
        self.apply_edits()
        agreed = self.loop.take(measured, again, last)
        counters["tip"] = max(counters["tip"], counters["step"])
        self.branches.current.tip = counters["tip"]
        self.keep()
        return agreed

    def _record(self, taken: Taken) -> None:
        branch = self.branches.current.name
        self.history.append(branch, taken.record)
        self.learn(taken)
        if taken.samples:
            self.samples.append(branch, int(taken.shared["step"]), taken.samples)

    def warn(self, text: str) -> None:
        """Say something with the end of a run, and in the journal."""
        self.warnings.append(text)
        self.note(text)

    def learn(self, taken: Taken) -> None:
        """Take note of the names of the user's own metrics."""
        self._metrics.update(taken.shared)

    def _begin(self, steps: int | None, named: bool) -> None:
        """See that all ranks are to do the same."""
        self._see_replaced()
        self.rejoin()
        self.refresh()
        position, length = self.counters["position"], self.batches.length
        has = self.batches.steps_left(position, self.accumulate) > 0
        own = [self.step, self.counters["tip"], steps or 0, has, length or -1]
        rows = gather_numbers(own, self.group)
        for column, what in ((0, "are at steps"), (2, "were asked for steps")):
            if len(set(rows[:, column])) > 1:
                said = ", ".join(f"{value:g} (rank {r})" for r, value in enumerate(rows[:, column]))
                raise UsageError(
                    f"Stepper: the ranks {what} {said}: call it on all ranks alike, or "
                    "stepper.to(step) on all of them"
                )
        self.settle_tip(int(rows[:, 1].min()))
        lacking = [rank for rank, there in enumerate(rows[:, 3]) if not there]
        if lacking:
            raise UsageError(self._out_of_batches(lacking))
        self.loop.begin()
        if not self._rehearsed and self.step == 0 and (self._check or named):
            for line in rehearse(self):
                self.warn(line)
        self._rehearsed = True

    def _out_of_batches(self, ranks: Sequence[int]) -> str:
        """That there are no more, and what can be done."""
        all_of_them = len(ranks) == self.group.size()
        who = (
            ""
            if all_of_them
            else f" on rank{'s' if len(ranks) > 1 else ''} " + ", ".join(map(str, ranks))
        )
        uneven = "" if all_of_them else " (the others have more)"
        return (
            f"step {self.step}: out of batches{who}{uneven}; stepper.restart_batches(), or "
            "%mlx_step restart-batches, begins with the first one again"
        )

    def _see_replaced(self) -> None:
        for name, old in self._names.items():
            now = PROTECTION.namespace.get(name)
            if isinstance(now, Module) and now is not old:
                self.warn(
                    f"{name} was assigned again since the stepper was made, which still trains "
                    "the old one: make a new Stepper for the new one"
                )
                self._names = {**self._names, name: now}

    def _explained(self, stop: Stop, taken: Taken) -> Stop:
        """The stop with more to say of it, where it is a breakpoint."""
        step, name = stop.step, stop.text
        if stop.kind != "breakpoint":
            return stop
        text = f"step {step}: breakpoint {name}: {self.breakpoints.known[name]} holds"
        if name == "replicas":
            text = f"step {step}: {self.replicas.said}"
        elif name == "nonfinite":
            from mlxbench_kernel.training.origin import origin

            text = f"step {step}: loss is {taken.shared['loss']:g}; {origin(self)}"
        return replace(stop, text=text)

    # -- checkpoints -------------------------------------------------------------

    def save(self, path: str) -> None:
        """Write a checkpoint, on all ranks alike; see `checkpoint.save`.

        Parameters
        ----------
        path
            A folder. ``model.safetensors`` in it is what ``model.load_weights`` reads.

        Raises
        ------
        UsageError
            There is something else at that path.
        StorageError
            It could not be written; an older checkpoint is still there.
        """
        saving.save(self, path)

    def load(self, path: str) -> None:
        """Go on from a checkpoint, on any number of ranks; kept steps and branches are forgotten.

        Raises
        ------
        UsageError
            There is none, it is damaged, or of another model; nothing was changed.
        """
        saving.load(self, path)

    # -- breakpoints -------------------------------------------------------------

    def break_at(self, what: str) -> None:
        """Stop a run when something happens.

        Parameters
        ----------
        what
            One of `BREAKPOINTS`, or a condition of your own.
        """
        self.breakpoints.switch_on(what, self.measured)

    def no_break(self, what: str) -> None:
        """Do not stop for this any more."""
        self.breakpoints.switch_off(what)


_made: list[Stepper] = []


def current() -> Stepper | None:
    """The stepper that was made last in this process."""
    return _made[0] if _made else None
