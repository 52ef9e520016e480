"""What a rank does with a model that is tuned; this runs on the rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mlx.utils import tree_flatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models import fusing, tuning
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.remote.said import SaidAtTimes


def on_tuning(part: Part, call: str, *arguments: Any) -> Any:
    """Do one of `CALLS` with this rank's part of a model."""
    return CALLS[call](part, *arguments)


def _finetune(
    part: Part,
    data: str,
    records: bool,
    resume: str | None,
    options: dict[str, Any],
    alone: bool = False,
) -> dict[str, Any]:
    tell = SaidAtTimes("done", "total")
    given = json.loads(data) if records else data
    made = tuning.finetune(part, given, resume=resume, progress=tell, alone=alone, **options)
    model: Any = part.model
    trained: Any = tree_flatten(model.trainable_parameters())
    return {
        "method": made.options.method,
        "trained": sum(array.size for _, array in trained),
        "parameters": _count(model),
        "examples": {name: len(each) for name, each in made.examples.items()},
        "batches": len(made.batches),
        "batch_size": made.options.batch_size,
        "step": made.stepper.step,
        "notes": made.notes,
    }


def _validate(part: Part, examples: str) -> dict[str, Any]:
    return asdict(_tuned(part).validate(examples))


def _save(part: Part, folder: str) -> str:
    return str(_tuned(part).save(folder))


def _fuse(part: Part, folder: str, dequantize: bool) -> str:
    return str(fusing.fuse(part, folder, dequantize))


def _tuned(part: Part) -> tuning.Tuning:
    made = part.tuning
    if not isinstance(made, tuning.Tuning):
        raise UsageError("this model was not tuned yet: type lm.finetune(data) first")
    return made


def _count(model: Any) -> int:
    from mlx_lm import utils

    count: Any = utils.get_total_parameters
    return int(count(model))


CALLS: dict[str, Callable[..., Any]] = {
    "finetune": _finetune,
    "validate": _validate,
    "save": _save,
    "fuse": _fuse,
}
