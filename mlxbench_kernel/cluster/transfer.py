"""Moves values between the notebook and ranks; arrays travel as buffers, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipyparallel

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.rank import arrays


def push(client: BenchClient, values: Mapping[str, Any], ranks: Sequence[int]) -> None:
    """Put values into the namespaces of ranks and wait until they are there.

    Parameters
    ----------
    values
        By name: any nesting of dict, list and tuple with `mlx.core.array` of every dtype,
        NumPy arrays, and plain values.

    Raises
    ------
    UsageError
        A value cannot be sent; none was.
    """
    for name in values:
        if not name.isidentifier():
            raise UsageError(f"{name!r} is not a variable's name")
    try:
        structure, buffers = arrays.take_apart(dict(values))
    except TypeError as error:
        raise UsageError(
            f"{error}. That cannot be sent to ranks: make it there, in a %%mlx_dist cell"
        ) from None
    view = client.direct_view(list(ranks))
    _answers(view.apply_async(arrays.bind, structure, *buffers))


def pull(client: BenchClient, names: Sequence[str], ranks: Sequence[int]) -> dict[int, Any]:
    """Fetch variables of ranks.

    Returns
    -------
    dict
        For each rank a dict of values by name.

    Raises
    ------
    UsageError
        Ranks lack a name, or a value cannot be sent; the message says which.
    """
    view = client.direct_view(list(ranks))
    fetched = _answers(view.apply_async(arrays.fetch, list(names)))
    replies = dict(zip(ranks, fetched, strict=True))
    for kind, say in (("missing", _missing), ("refused", _refused)):
        where = {rank: reply[1] for rank, reply in replies.items() if reply[0] == kind}
        if where:
            raise UsageError(say(where, len(ranks)))
    try:
        return {r: arrays.put_together(reply[1], list(reply[2:])) for r, reply in replies.items()}
    except (AttributeError, ImportError) as error:
        raise UsageError(
            f"a value is of a class that this notebook does not have: {error}. Nothing was pulled; "
            "define the class here too, or pull the value's parts"
        ) from None


def results(client: BenchClient, ranks: Sequence[int]) -> dict[int, Any]:
    """Fetch the value of each rank's last cell, as text where it cannot be sent."""
    fetched = _answers(client.direct_view(list(ranks)).apply_async(arrays.fetch_result))
    found = {}
    for rank, (text, structure, *buffers) in zip(ranks, fetched, strict=True):
        try:
            found[rank] = arrays.put_together(structure, buffers)
        except (AttributeError, ImportError):  # of a class that only the rank has
            found[rank] = text
    return found


def _answers(pending: ipyparallel.AsyncResult) -> list[Any]:
    """What the ranks returned; what goes wrong there is said in one line."""
    try:
        return list(pending.get())
    except (ipyparallel.error.CompositeError, ipyparallel.error.RemoteError) as error:
        first = error.elist[0] if hasattr(error, "elist") else (error.ename, error.evalue)
        if first[0] == "EngineError":
            raise ClusterError(
                "a rank is gone: %mlx_dist status says which, %mlx_dist restart starts all anew"
            ) from None
        raise UsageError(
            f"the ranks could not take it: {first[0]}: {first[1]}. Classes and functions of this "
            "notebook are not there: define them in a %%mlx_dist cell, or in a module beside it"
        ) from None


def _missing(where: Mapping[int, list[str]], asked: int) -> str:
    names = sorted({name for names in where.values() for name in names})
    parts = []
    for name in names:
        ranks = [str(rank) for rank, lacking in where.items() if name in lacking]
        who = "no rank has" if len(ranks) == asked else f"rank {', '.join(ranks)} has no"
        parts.append(f"{who} variable {name}")
    return "; ".join(parts) + ". Nothing was pulled; --ranks R takes it from those that have it"


def _refused(where: Mapping[int, str], asked: int) -> str:
    rank, reason = next(iter(where.items()))
    return f"rank {rank}: {reason}. Nothing was pulled"
