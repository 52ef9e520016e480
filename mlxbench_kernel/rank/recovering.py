"""What a rank is asked to do after a fault; called on its main thread, while no cell runs."""

from __future__ import annotations

import os
import shutil
from typing import Any

from mlxbench_kernel.rank import startup
from mlxbench_kernel.rank.cells import Cells
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.rank.startup import Place


def mend(count: int | None) -> dict[str, Any]:
    """Put back what is protected and find what may be wrong; see `Cells.recover`."""
    return _cells().recover(count)


def rejoin_and_mend(place: Place, count: int | None) -> dict[str, Any]:
    """`startup.rejoin`, then `mend`."""
    startup.rejoin(place)
    return mend(count)


def refuse(names: list[str], reason: str) -> None:
    """Let no cell use these names until they are assigned again; see `StaleNames.refuse`."""
    _cells().stale.refuse(names, reason)


STATE = "_mlxbench_state"  # the variable in which protected state travels


def offer(count: int) -> list[str]:
    """Put the protected state after so many evaluations into a variable.

    Returns
    -------
    list of str
        The names that are sharded over the ranks, which therefore are of no use to another one.
    """
    from mlxbench_kernel.rank import rescue

    _namespace()[STATE] = rescue.give(count)
    return rescue.sharded()


def accept(count: int) -> tuple[list[str], list[str]]:
    """Take over the state in that variable, see `rescue.take`."""
    from mlxbench_kernel.rank import rescue

    return rescue.take(_namespace().pop(STATE), count)


def forget() -> None:
    """Let go of the variable."""
    _namespace().pop(STATE, None)


def load(folder: str, count: int) -> tuple[list[str], list[str]]:
    """See `rescue.load`."""
    from mlxbench_kernel.rank import rescue

    return rescue.load(folder, count)


def remove(folder: str) -> None:
    """Remove a folder of `rescue.save`, which the ranks of a host share."""
    shutil.rmtree(os.path.expanduser(folder), ignore_errors=True)


def standing() -> tuple[int, bool]:
    """See `Protection.standing`."""
    return PROTECTION.standing()


def protected() -> dict[str, Any]:
    """What is protected, in the form of `mend`."""
    names = list(PROTECTION.trees)
    return {"restored": names, "incomplete": [], "step": PROTECTION.step()}


def _namespace() -> dict[str, Any]:
    from IPython import get_ipython

    namespace: dict[str, Any] = get_ipython().user_ns
    return namespace


def _cells() -> Cells:
    from IPython import get_ipython

    cells: Cells = get_ipython().kernel.cells
    return cells
