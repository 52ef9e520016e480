"""What a rank is asked to do after a fault; called on its main thread, while no cell runs."""

from __future__ import annotations

from typing import Any

from mlxbench_kernel.rank import startup
from mlxbench_kernel.rank.cells import Cells
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


def _cells() -> Cells:
    from IPython import get_ipython

    cells: Cells = get_ipython().kernel.cells
    return cells
