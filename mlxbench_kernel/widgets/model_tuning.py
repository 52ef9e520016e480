"""A language model that is fine-tuned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.models.losses import Validated
from mlxbench_kernel.remote import tuning
from mlxbench_kernel.remote.language_model import ModelOnRanks
from mlxbench_kernel.widgets import finetuning

if TYPE_CHECKING:
    from mlxbench_kernel.widgets.stepping import StepperView


class Tunes(ModelOnRanks):
    """The part of `LanguageModel` that is tuned."""

    def finetune(
        self,
        data: Any,
        method: str | None = None,
        *,
        steps: int | None = None,
        resume: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> StepperView:
        """Fine-tune it on all ranks, each with its part of every batch.

        A stepper takes the steps: its dashboard, which this returns, and ``%mlx_step`` drive it,
        back and on other branches too. What `generate` makes is of the weights of now.

        Parameters
        ----------
        data
            To train on: a folder with ``train.jsonl`` and ``valid.jsonl`` as mlx-lm reads it, one
            such file, a list of dicts, or plain text; see `mlxbench_kernel.models.datasets.read`.
        method
            "lora" (the default), "dora", or "full".
        steps
            Take so many at once, with a progress bar; by default none.
        resume
            Folder of adapters to go on from, see `save_adapters`.
        **options
            As mlx-lm names them, with its defaults: ``num_layers``, ``rank``, ``scale``,
            ``dropout``, ``keys``, ``batch_size`` (of all ranks together), ``learning_rate``,
            ``lr_schedule``, ``optimizer``, ``max_seq_length``, ``mask_prompt``,
            ``grad_checkpoint``, ``grad_accumulation_steps``, ``seed``, ``val_batches``, and
            ``validate_every``; see `mlxbench_kernel.models.options.Options`.

        Raises
        ------
        UsageError
            The model is split, a line of the data is wrong, or an option cannot be. Nothing was
            trained.
        ClusterError
            A rank is gone, or failed.
        KeyboardInterrupt
            Ctrl-C: it paused after a step.
        """
        return finetuning.finetune(self, data, method, steps, resume, options)

    def validate(self, examples: str = "valid") -> Validated:
        """How well the model of now predicts examples that it is not trained on.

        Parameters
        ----------
        examples
            "valid", "test" or "train" of the data that it is tuned with.

        Raises
        ------
        UsageError
            It is not being tuned, or there are no such examples.
        """
        return tuning.validate(self, examples)

    def save_adapters(self, folder: str | os.PathLike[str]) -> Path:
        """Write what it was tuned by, as mlx-lm does: ``mlx_lm.generate --adapter-path FOLDER``.

        Beside the adapters lies what ``finetune(data, resume=FOLDER)`` goes on from.

        Raises
        ------
        UsageError
            It is not being tuned, or there are other files in the folder.
        StorageError
            They could not be written; older ones are still there.
        """
        return tuning.save(self, folder)

    def fuse(self, folder: str | os.PathLike[str], dequantize: bool = False) -> Path:
        """Write a model into which the adapters are fused, as ``mlx_lm.fuse`` does.

        Parameters
        ----------
        folder
            A new one, on the host of rank 0.
        dequantize
            Whether quantized weights become floats.

        Raises
        ------
        UsageError
            There is something in the folder, or the model is split.
        StorageError
            It could not be written; nothing of it is left.
        """
        return tuning.fuse(self, folder, dequantize)
