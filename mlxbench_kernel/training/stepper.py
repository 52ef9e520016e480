"""`Stepper`: a training run that can be stepped forwards and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.record import RECORD
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.answers import ANSWERS
from mlxbench_kernel.rank.frozen import containers
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import saving
from mlxbench_kernel.training.batches import Batches
from mlxbench_kernel.training.breakpoints import Breakpoints
from mlxbench_kernel.training.given import optimizers_of, trees_of
from mlxbench_kernel.training.handover import Handover
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.keeping import Keeping
from mlxbench_kernel.training.loop import Loop
from mlxbench_kernel.training.place import PROTECTED
from mlxbench_kernel.training.program import CustomProgram, Loss, Program
from mlxbench_kernel.training.report import Report
from mlxbench_kernel.training.running import Running
from mlxbench_kernel.training.sampling import Sampling
from mlxbench_kernel.training.settings import Settings
from mlxbench_kernel.training.unfreezing import Unfreezing
from mlxbench_kernel.training.validating import Validation
from mlxbench_kernel.training.watching import ReplicaWatch


class Stepper(Running):
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
        tuple or list gives several arguments. On a GPU the next one is asked for while a step
        still runs, where that gains time and takes less than a tenth of a step.
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
        Every so many steps the parameters of all ranks are compared; 0 for never. By default every
        50, or up to 1000 where that would take more than 0.1 % of the time.
    check
        Whether the first step is run twice more, see `rehearse`.
    validate, validate_every
        A function that gives a loss and changes nothing, called on all ranks alike after every so
        many steps; conditions may name it ``validation_loss``.

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
        replicas: int | None = None,
        check: bool = True,
        validate: Callable[[], float] | None = None,
        validate_every: int = 0,
    ) -> None:
        trees = trees_of(model, optimizer, loss_fn, batches, step, state)
        if step is not None and (accumulate != 1 or compile or clip is not None):
            raise UsageError(
                "Stepper: with a step of your own, accumulate, compile and clip are its matter"
            )
        if not isinstance(accumulate, int) or accumulate < 1:
            raise UsageError(f"Stepper: accumulate is a number of batches, not {accumulate!r}")
        self.validation = Validation(validate, validate_every)
        self.trees = trees
        self.modules = {name: tree for name, tree in trees.items() if isinstance(tree, Module)}
        self.group = mx.distributed.init()
        self.unfreezing = Unfreezing(self.modules.values())
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
        self.first_key: list[int] = np.array(frozen.random_key()).tolist()
        super().__init__(counters, roots, settings, source, accumulate, budget)
        rates = [each.state for each in optimizers.values() if "learning_rate" in each.state]
        self.loop = Loop(
            self.program, source, accumulate, counters, roots,
            lambda: rates[0]["learning_rate"] if rates else None, self.group,
        )  # fmt: skip
        self.history = History()
        self.samples = ParameterHistory(list(self.program.trained))
        self.sampling, self.keeping = Sampling(), Keeping()
        self.replicas = ReplicaWatch(self.modules, self.group, replicas)
        self.breakpoints = Breakpoints()
        self.doing, self.stopped, self.broke = "paused", "", ""
        self.wanted: tuple[int | None, str | None] = None, None  # the run: to, until
        self.warnings: list[str] = []
        self._check, self.rehearsed = check, False
        self.metrics: set[str] = set()
        self._names = {
            name: value
            for name, value in PROTECTION.namespace.items()
            if isinstance(value, Module) and any(value is each for each in self.modules.values())
        }
        PROTECTION.protect({PROTECTED: roots})
        self.refresh()
        self.keep(pinned=True)
        self.report = Report(self)
        RECORD.step = lambda: self.step
        PROTECTION.companions[PROTECTED] = Handover(self)
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
        return sorted({*known, *self.metrics, *self.validation.names})

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


def let_go(stepper: Stepper) -> None:
    """Keep nothing of a run any more, where it is the one that was made last."""
    if current() is stepper:
        _made.clear()
        PROTECTION.trees.pop(PROTECTED, None)
        PROTECTION.companions.pop(PROTECTED, None)
        PROTECTION.kept.clear()
        RECORD.step = None
        for name in ("stepper", "stepper_stop"):
            ANSWERS.pop(name, None)
