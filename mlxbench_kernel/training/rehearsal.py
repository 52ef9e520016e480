"""Runs the first step twice, to see that it depends on nothing but its state and its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank.frozen import Parts
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import outside
from mlxbench_kernel.training.exchange import gather_numbers, gather_texts
from mlxbench_kernel.training.place import STAY
from mlxbench_kernel.training.replicas import fingerprints
from mlxbench_kernel.training.snapshots import other_generators

if TYPE_CHECKING:
    from mlxbench_kernel.training.running import Running


def rehearse(stepper: Running) -> list[str]:
    """Take the next step twice, and go back to before it; on all ranks alike.

    Parameters
    ----------
    stepper
        At its beginning.

    Returns
    -------
    list of str
        What is wrong but does not keep it from going on.

    Raises
    ------
    UsageError
        The step changes nothing of its state.
    """
    here = stepper.snapshots.find(stepper.branches.current.name, stepper.step)
    assert here is not None and here.parts is not None
    before = fingerprints(_arrays(here.parts))
    mx.eval(before)
    stay = {name: stepper.counters[name] for name in STAY}
    seen = []
    generators = repr(other_generators())
    others = outside.held(stepper.program.given)
    for _ in range(2):
        agreed = stepper.loop.take(measured=False)
        assert agreed is not None
        taken = agreed.taken[-1]
        stepper.learn(taken)
        stepper.loop.settle()
        parts = stepper.frozen_state()
        arrays = _arrays(parts)
        used = generators != repr(other_generators())
        seen.append((taken.record["loss_rank"], np.array(fingerprints(arrays)), parts))
        here.put_back()
        stepper.counters.update(stay)
        stepper.refresh()
        stepper.apply_edits()  # that were made before the first step
    changes = outside.changed(others, outside.held(stepper.program.given), here.parts)
    PROTECTION.commit()
    (loss, first, parts), (again, second, _) = seen
    named = _names(parts)
    untouched = len(first) == len(before) and np.array_equal(first, np.array(before))
    differs = [loss != again and loss == loss, *(first != second).any(axis=1).tolist()]
    flags = gather_numbers([untouched, any(differs), used], stepper.group)
    # The states of those cost more than a small step.
    stepper.snapshots.generators = bool(flags[:, 2].any())
    if flags[:, 0].all():
        raise UsageError(
            "Stepper: the step changes nothing of its state: update the model in it "
            "(optimizer.update(model, gradients)), or name what it changes in state=…"
        )
    noted = _of_others(gather_texts(", ".join(changes), stepper.group))
    if not flags[:, 1].any():
        return noted
    where = [name for name, differ in zip(named, differs[1:], strict=True) if differ]
    values = f"loss {loss:g} and {again:g}" if differs[0] else f"{', '.join(where[:3])} differs"
    return [
        f"the first step, run twice from the same state, gave different results ({values}): "
        "something outside its state changes it (a counter, a file, another random generator, "
        "batches that differ from call to call), so going back will not be exact",
        *noted,
    ]


def _of_others(told: list[str]) -> list[str]:
    """What to say where ranks change arrays that are not in the state."""
    names = next(filter(None, told), "")
    if not names:
        return []
    return [
        f"the step changes {names}, outside its state, so going back will not be exact: put it "
        "into the model, or name it in state=…"
    ]


def _arrays(parts: Parts) -> list[mx.array]:
    return [
        each
        for _, copy in parts
        for each in (copy.values() if isinstance(copy, dict) else copy)
        if isinstance(each, mx.array)
    ]


def _names(parts: Parts) -> list[str]:
    return [
        str(name)
        for _, copy in parts
        for name, each in (copy.items() if isinstance(copy, dict) else enumerate(copy))
        if isinstance(each, mx.array)
    ]
