"""Checkpoints of a stepper: its state, where it stands, and what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.training import checkpoint
from mlxbench_kernel.training.branches import Branches, Edit
from mlxbench_kernel.training.settings import part

if TYPE_CHECKING:
    from mlxbench_kernel.training.stepper import Stepper

COUNTERS = ("step", "position", "clip", "shuffle")


def about(stepper: Stepper) -> dict[str, Any]:
    """Where it stands, in terms of JSON."""
    return {
        "counters": {name: stepper.counters[name] for name in COUNTERS},
        "branch": stepper.branches.current.name,
        "frozen": stepper.frozen,
        "journal": [[each.step, each.branch, each.text, each.time] for each in stepper.journal],
    }


def save(stepper: Stepper, path: str) -> None:
    """See `Stepper.save`."""
    place = checkpoint.save(path, stepper.trees, about(stepper), stepper.group)
    stepper.note(f"saved to {place.name}")


def load(stepper: Stepper, path: str) -> None:
    """See `Stepper.load`."""
    loaded, told = checkpoint.load(path, stepper.group)
    checkpoint.restore(stepper.trees, loaded, stepper.group)
    go_on(stepper, told, path)


def go_on(stepper: Stepper, told: Mapping[str, Any], path: str) -> None:
    """Be where a checkpoint says, the state of which is there already.

    Parameters
    ----------
    told
        From `about`.
    path
        Of the checkpoint.
    """
    counters: dict[str, Any] = stepper.counters
    counters |= told["counters"]
    for each in stepper.frozen:
        stepper.unfreezing.unfreeze(part(stepper.modules, each))
    for each in told["frozen"]:
        part(stepper.modules, each).freeze()
    stepper.forget_all()
    stepper.said = ""
    branches = Branches()
    branches.current.tip = branches.current.start = stepper.step
    branches.current.edits = [Edit(stepper.step, "load", str(path))]
    counters["edits"], counters["tip"] = 1, stepper.step
    stepper.go_on_with(branches)
    stepper.note(f"loaded {path}: step {stepper.step} of branch {told['branch']}")
