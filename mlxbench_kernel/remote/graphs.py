"""Captures graphs on ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipyparallel

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import BenchError, ClusterError, UsageError
from mlxbench_kernel.graph import Graph, capture_expression

CAPTURE_SECONDS = 120.0


def capture_on(
    cluster: Cluster, text: str, ranks: Sequence[int], compiled: bool = True
) -> dict[int, Graph]:
    """Capture an expression on ranks, in their own namespaces; nothing is evaluated.

    Parameters
    ----------
    cluster
        Where the ranks are.
    text
        The expression, see `mlxbench_kernel.graph.capture_expression`.
    ranks
        Which ones, all at once.
    compiled
        As for `mlxbench_kernel.graph.capture`.

    Returns
    -------
    dict
        By rank.

    Raises
    ------
    UsageError
        A rank is busy, or the expression cannot be captured there: the message names the rank.
    ClusterError
        A rank is gone.
    """
    chosen = cluster.choose(ranks)
    doing = {rank: what for rank, what in cluster.doing(chosen).items() if what != "idle"}
    if doing:
        rank, what = next(iter(doing.items()))
        raise UsageError(
            f"rank {rank} is {what}: capture when it is idle, or stop it with %mlx_dist interrupt"
        )
    calls = {rank: cluster.client.on(rank).apply_async(_capture, text, compiled) for rank in chosen}
    graphs: dict[int, Graph] = {}
    failed: dict[int, str] = {}
    for rank, call in calls.items():
        try:
            found = call.get(CAPTURE_SECONDS)
        except ipyparallel.error.TimeoutError:
            raise ClusterError(
                f"rank {rank} has not captured {text} in {CAPTURE_SECONDS:g} s"
            ) from None
        except ipyparallel.error.RemoteError as error:
            raise ClusterError(f"rank {rank}: {error.ename}: {error.evalue}") from None
        if isinstance(found, Graph):
            graphs[rank] = found
        else:
            failed[rank] = found
    if failed:
        rank, why = next(iter(failed.items()))
        others = f"; on rank {next(iter(graphs))} it can be captured" if graphs else ""
        raise UsageError(f"rank {rank}: {why}{others}")
    return graphs


def _capture(text: str, compiled: bool) -> Graph | str:
    """On the rank: the graph, or why there is none."""
    from IPython import get_ipython

    shell: Any = get_ipython()
    try:
        return capture_expression(text, shell.ev, shell.user_ns, compiled).graph
    except BenchError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}{_where(error)}"


def _where(error: BaseException) -> str:
    """The innermost line of the user's in which an error was raised."""
    found = ""
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "ipykernel_" in code.co_filename or code.co_filename.startswith("<ipython"):
            found = f" (line {traceback.tb_lineno} in {code.co_name})"
        traceback = traceback.tb_next
    return found
