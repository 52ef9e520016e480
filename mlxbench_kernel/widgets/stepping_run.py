"""Waits for a run of a stepper, with a progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxbench_kernel.widgets.progress import ProgressBar

if TYPE_CHECKING:
    from mlxbench_kernel.remote.mirror import State
    from mlxbench_kernel.remote.stepping import Stepping


def wait(stepping: Stepping, first: int, steps: int = 0) -> State:
    """Wait until a run has stopped; see `Stepping.wait`.

    Parameters
    ----------
    stepping
        Whose.
    first
        The step that it began at.
    steps
        How many are taken; 0 where that is not known.
    """

    def show(state: State) -> None:
        history = stepping.histories[0]
        last = history.last(state.branch)
        _, validated = history.series(state.branch, "validation_loss")
        share = (state.step - first) / steps if steps else 0.0
        text = f"step {state.step}" + (f", loss {last['loss']:.4g}" if "loss" in last else "")
        text += f", validation {validated[-1]:.4g}" if len(validated) else ""
        late = f" · {state.doing}" if state.doing not in ("playing", "paused") else ""
        progress(min(max(share, 0.01), 1.0), text + late)

    with ProgressBar() as progress:
        return stepping.wait(show)
