"""Fine-tunes a model on ranks for the notebook: makes them ready, validates, saves and fuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.datasets import LONGEST_PATH
from mlxbench_kernel.models.losses import Validated
from mlxbench_kernel.remote.asking import cell_of
from mlxbench_kernel.remote.driving import pause, stepping_of
from mlxbench_kernel.remote.language_model import ModelOnRanks
from mlxbench_kernel.remote.on_model import on_model
from mlxbench_kernel.remote.stepping import Stepping

Progress = Callable[[float, str], None]
MOST_OF_A_CELL = 4_000_000  # characters: more data than that is not kept for ranks that come back


@dataclass(frozen=True)
class Tuned:
    """A model that is ready to be tuned.

    Attributes
    ----------
    stepping : Stepping
        Drives it; the same that ``%mlx_step`` drives.
    method : str
        "lora", "dora" or "full".
    trained, parameters : int
        How many numbers are trained, and how many the model has.
    examples : dict of str to int
        How many there are of "train", "valid" and "test".
    batches, batch_size : int
        Of one pass over the examples, and examples of one.
    step : int
        Where it stands; other than 0 where it was resumed.
    notes : list of str
        What is to be known of it.
    """

    stepping: Stepping
    method: str
    trained: int
    parameters: int
    examples: dict[str, int]
    batches: int
    batch_size: int
    step: int
    notes: list[str]

    def __repr__(self) -> str:
        share = 100 * self.trained / max(self.parameters, 1)
        sets = ", ".join(f"{count:,} {name}" for name, count in self.examples.items() if count)
        line = (
            f"{self.method}: {self.trained:,} of {self.parameters:,} parameters are trained "
            f"({share:.3g} %); examples: {sets}; {self.batches:,} batches of {self.batch_size} a "
            "pass"
        )
        return "\n".join([line, *self.notes])


def finetune(
    lm: ModelOnRanks,
    data: Any,
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress = lambda done, text: None,
    show: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Tuned:
    """Have ranks make ready to tune a model, see `mlxbench_kernel.models.tuning.finetune`.

    Parameters
    ----------
    lm
        The model.
    data, resume, **options
        As there; paths are those of this host.
    progress, show
        Told how far the reading of examples is, and who is late.

    Raises
    ------
    UsageError
        Something that was given cannot be. Nothing was trained.
    ClusterError
        A rank is gone, or failed.
    """
    done: dict[int, float] = {}

    def heard(rank: int, told: dict[str, Any]) -> None:
        done[rank] = told["done"] / max(told["total"], 1)
        progress(sum(done.values()) / lm.size, f"reading {told['total']:,} examples")

    pause(lm.cluster)  # else it would go on with the new stepper
    given = None if resume is None else here(resume)
    call = "finetune", *_told(data), given, options
    found = lm.ask("tuning", *call, heard=heard, show=show)
    again = cell_of(on_model, "tuning", lm.name, *call, True)
    lm.cluster.setup.put(lm.of_tuning, again if len(again) < MOST_OF_A_CELL else "")
    return Tuned(stepping=stepping_of(lm.cluster), **found[0])


def validate(
    lm: ModelOnRanks, examples: str = "valid", show: Callable[[str], None] = lambda text: None
) -> Validated:
    """Have ranks validate a model that is tuned, each with its part of the examples."""
    return Validated(**lm.ask("tuning", "validate", examples, show=show)[0])


def save(lm: ModelOnRanks, folder: str | os.PathLike[str]) -> Path:
    """Have rank 0 write the adapters."""
    return Path(lm.ask("tuning", "save", here(folder))[0])


def fuse(lm: ModelOnRanks, folder: str | os.PathLike[str], dequantize: bool = False) -> Path:
    """Have rank 0 write the model with what it was tuned by."""
    return Path(lm.ask("tuning", "fuse", here(folder), dequantize)[0])


def here(path: str | os.PathLike[str]) -> str:
    """A path of the notebook's, which ranks may have another working folder than."""
    return str(Path(path).expanduser().absolute())


def _told(data: Any) -> tuple[str, bool]:
    """Data as ranks are told it: a path or a text; or records, as JSON, which is read faster."""
    if isinstance(data, str):
        short = "\n" not in data and len(data) < LONGEST_PATH
        there = short and os.path.exists(Path(data).expanduser())  # no, of what cannot be a name
        return (here(data) if there else data), False
    if isinstance(data, os.PathLike):
        return here(data), False
    try:
        if not isinstance(data, (Mapping, Sequence)):
            raise TypeError(f"it is a {type(data).__name__}")
        return json.dumps(data), True
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"data cannot be told to the ranks ({error}): give a folder with train.jsonl, a file, "
            "a text, or a list of dicts of texts"
        ) from None
