"""What a notebook shows of a model that is tuned: what is trained, progress, and the dashboard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote import tuning
from mlxbench_kernel.remote.language_model import ModelOnRanks
from mlxbench_kernel.widgets import stepping_run
from mlxbench_kernel.widgets.progress import ProgressBar

if TYPE_CHECKING:
    from mlxbench_kernel.widgets.stepping import StepperView


def finetune(
    lm: ModelOnRanks,
    data: Any,
    method: str | None,
    steps: int | None,
    resume: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> StepperView:
    """See `LanguageModel.finetune`."""
    from mlxbench_kernel.widgets.stepping import StepperView  # plotly takes a while

    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise UsageError(f"steps={steps!r}: type a number, 1 or more, or leave it out")
    if method is not None:
        options = {**options, "method": method}
    with ProgressBar() as bar:
        made = tuning.finetune(lm, data, resume=resume, progress=bar, **options)
    print(made)
    if steps is not None:
        if made.examples["valid"] and options.get("validate_every") != 0:
            print(tuning.validate(lm))
        made.stepping.run(steps)
        stepping_run.wait(made.stepping, made.step, steps)
    return StepperView(made.stepping)
