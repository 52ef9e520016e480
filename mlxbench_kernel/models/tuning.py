"""Fine-tunes a model on its ranks, each with its part of every batch, by a `Stepper`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.graph.changes import kept
from mlxbench_kernel.memory.fit.stand_ins import copied
from mlxbench_kernel.models import adapters, adapting, datasets, losses, recomputing
from mlxbench_kernel.models.adapters import Saved
from mlxbench_kernel.models.batching import TrainingBatches
from mlxbench_kernel.models.datasets import Data, Examples, Progress
from mlxbench_kernel.models.options import Options
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.training import Stepper, checkpoint, saving
from mlxbench_kernel.training.exchange import agree, gather_texts
from mlxbench_kernel.training.stepper import let_go


class Tuning:
    """A model that is being tuned; `finetune` makes it.

    Attributes
    ----------
    part : Part
        Of the model.
    options : Options
        How it is tuned.
    examples : dict of str to Examples
        "train", "valid" and "test".
    batches : TrainingBatches
        Of this rank.
    stepper : Stepper
        What takes the steps: ``tuning.stepper.run(100)``.
    optimizer : mlx.optimizers.Optimizer
        That it is tuned with.
    notes : list of str
        What is to be known of it, in words.
    """

    def __init__(self, part: Part, options: Options, examples: dict[str, Examples]) -> None:
        self.part, self.options, self.examples = part, options, examples
        self.notes: list[str] = []
        self.group = mx.distributed.init()
        train = examples["train"]
        self.batches = TrainingBatches(
            train, options.batch_size, options.max_seq_length, options.seed, self.group,
            options.grad_accumulation_steps,
        )  # fmt: skip
        if long := train.longer_than(options.max_seq_length):
            self.notes.append(
                f"{long} of {len(train)} examples are longer than {options.max_seq_length} tokens "
                f"and are cut (the longest has {train.longest}): split them, or type "
                f"max_seq_length={train.longest}"
            )
        left = len(train) - len(self.batches) * options.batch_size
        if left:
            self.notes.append(f"{left} of {len(train)} examples fill no batch and are left out")
        self.stepper: Stepper
        self.optimizer: Any = adapting.make_optimizer(options)
        self.names: set[str] = set()

    def begin(self, saved: Saved | None, alone: bool = False) -> None:
        """Make the model one that is tuned, and its stepper; see `finetune`."""
        part, options = self.part, self.options
        model: Any = part.model
        optimizer = self.optimizer
        mx.random.seed(options.seed)
        adapting.put_on(model, options)
        model.eval()
        if options.grad_checkpoint:
            recomputing.recompute(model.layers)
        flat: Any = tree_flatten(model.trainable_parameters())
        self.names = {name for name, _ in flat}
        if saved is not None:
            model.load_weights(list(saved.weights.items()), strict=False)
        if self.group.size() > 1:  # else all would leave out the same of what they compute
            keys = mx.random.split(frozen.random_key(), self.group.size())
            frozen.seed(keys[self.group.rank()])
        self.stepper = Stepper(
            model,
            optimizer,
            losses.loss_of,
            self.batches,
            accumulate=options.grad_accumulation_steps,
            compile=options.compiled,
            clip=options.clip,
            validate=self._validation_loss if len(self.examples["valid"]) else None,
            validate_every=options.validate_every,
        )
        part.tuning, part.adapter = self, None
        if saved is not None:
            part.adapter = saved.folder
            if not alone:
                self._go_on(saved, optimizer)

    def _go_on(self, saved: Saved, optimizer: Any) -> None:
        if not saved.trees:
            return
        before = Options.of({}, Options.saved_in(saved.config))
        if before.optimizer != self.options.optimizer:
            self.notes.append(f"{self.options.optimizer} begins anew: {before.optimizer} was saved")
            return
        rate = optimizer.state.get("learning_rate")
        checkpoint.restore({"optimizer": optimizer}, saved.trees, self.group)
        if before.learning_rate != self.options.learning_rate and rate is not None:
            optimizer.state["learning_rate"] = rate
        saving.go_on(self.stepper, saved.about, str(saved.folder))

    def validate(self, examples: str = "valid") -> losses.Validated:
        """How well the model of now predicts examples; on all ranks alike, each with its part.

        Parameters
        ----------
        examples
            "valid", "test" or "train".

        Raises
        ------
        UsageError
            There are no such examples.
        """
        some = self.examples.get(examples)
        if some is None or not len(some):
            there = ", ".join(name for name, each in self.examples.items() if len(each))
            raise UsageError(
                f"there are no {examples} examples: put {examples}.jsonl beside train.jsonl, or "
                f"name one of {there}"
            )
        options = self.options
        loss, tokens = losses.validated(
            self.part.model, some, options.batch_size, options.val_batches,
            options.max_seq_length, options.seed, self.group,
        )  # fmt: skip
        return losses.Validated(loss, tokens, examples, self.stepper.step)

    def save(self, folder: str | Path) -> Path:
        """Write the adapters, see `adapters.save`; on all ranks alike."""
        place = adapters.save(
            folder,
            adapters.weights_of(self.part.model, self.names),
            self.options.config(str(self.part.folder)),
            self.stepper.trees["optimizer"],
            saving.about(self.stepper),
            self.group,
        )
        self.stepper.note(f"adapters saved to {place.name}")
        return place

    def weights(self) -> tuple[object, ...]:
        """What is the same as long as the weights are, for caches that are of those of then."""
        stepper = self.stepper
        done = stepper.journal[-1] if stepper.journal else None  # an edit, or a checkpoint
        return stepper.report.run, stepper.branches.current.name, stepper.step, done

    def end(self) -> None:
        """Have the model as it was, but for weights that were tuned themselves (``full``)."""
        let_go(self.stepper)
        self._off()
        self.part.tuning = self.part.adapter = None

    def _off(self) -> None:
        model: Any = self.part.model
        recomputing.as_before(model.layers)
        adapting.take_off(model)

    def _validation_loss(self) -> float:
        return self.validate().loss


def finetune(
    part: Part,
    data: Data,
    *,
    resume: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    alone: bool = False,
    **options: Any,
) -> Tuning:
    """Make ready to fine-tune a model; in a script, on all ranks alike.

    Each rank has a replica and takes its part of each batch; gradients are averaged. Of a batch
    each token counts alike, on whichever rank it is: ranks together follow one rank with the whole
    batch (with dropout but for what is left out). mlx-lm averages the means of ranks instead.

    Parameters
    ----------
    part
        Of a model that is not split. What it was tuned with before is taken off.
    data
        To train on, see `datasets.read`.
    resume
        Folder of adapters to go on from. Of those that `Tuning.save` has written, also with the
        optimizer's state, at the step where they were saved.
    progress
        Is told how many examples were read, of how many.
    alone
        Whether only this rank does it, in place of one that was lost: nothing is compared with the
        others, and the state is one of theirs, which the stepper is given afterwards.
    **options
        See `Options`; with `resume`, by default as they were.

    Returns
    -------
    Tuning
        At its beginning: ``tuning.stepper.run(100)`` takes steps.

    Raises
    ------
    UsageError
        Something that was given cannot be. Nothing was trained.
    """
    if part.is_split:
        raise UsageError(
            f"a model is tuned with a replica on each rank, and this one is split ({part.shard}): "
            f"load it again with LanguageModel.load({str(part.folder)!r}, shard='data')"
        )
    group = None if alone else mx.distributed.init()
    saved = None if resume is None else adapters.read(resume, group)
    before = None if saved is None else Options.saved_in(saved.config)
    model: Any = part.model
    chosen = Options.of(options, before).for_layers(len(model.layers))
    adapting.check(model, chosen)
    _try_on(model, chosen, saved)
    examples = _read(part, data, chosen, progress, group)
    made = Tuning(part, chosen, examples)
    if part.tuning is not None:
        part.tuning.end()
    elif adapting.take_off(model) and saved is None:
        made.notes.append(
            f"the adapters of {part.adapter} are off: type resume={str(part.adapter)!r} to go on "
            "from them"
        )
    made.begin(saved, alone)
    return made


def _try_on(model: Module, options: Options, saved: Saved | None) -> None:
    """See on a copy without weights that all goes: what the model was tuned with is still there.

    Raises
    ------
    UsageError
        It does not.
    """
    with kept():  # the random state, from which new weights are drawn
        trial = copied(model)
        adapting.take_off(trial)
        adapting.put_on(trial, options)
        if saved is not None:
            adapters.check(trial, saved.weights, saved.folder)


def _read(
    part: Part,
    data: Data,
    options: Options,
    progress: Progress,
    group: mx.distributed.Group | None,
) -> dict[str, Examples]:
    """The examples, the same on all ranks."""
    error: BenchError | None = None
    found: dict[str, Examples] = {}
    try:
        found = datasets.read(
            data,
            part.tokenizer,
            mask_prompt=options.mask_prompt,
            features=options.features,
            max_seq_length=options.max_seq_length,
            batch_size=options.batch_size,
            progress=progress,
        )
    except BenchError as raised:
        error = raised
    agree(error, group)
    for name, examples in found.items():
        digests = gather_texts(examples.digest, group)
        other = next((rank for rank, each in enumerate(digests) if each != digests[0]), None)
        if other is not None:
            raise UsageError(
                f"the {name} examples of rank {other} are not those of rank 0: copy the same files "
                "to both hosts"
            )
    return found
