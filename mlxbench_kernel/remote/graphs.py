"""Captures graphs on ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.graph import Graph
from mlxbench_kernel.remote.asking import Tell, ask_ranks
from mlxbench_kernel.remote.kept import on_kept

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
    with captured_on(cluster, text, ranks, compiled) as graphs:
        return graphs


@contextmanager
def captured_on(
    cluster: Cluster,
    text: str,
    ranks: Sequence[int],
    compiled: bool,
    tell: Tell = lambda text: None,
) -> Iterator[dict[int, Graph]]:
    """As `capture_on`; in the block the ranks keep the arrays, for `ask_ranks`.

    Parameters
    ----------
    cluster, text, ranks, compiled
        As for `capture_on`.
    tell
        Is told in words what was done about a fault.
    """
    with cluster.between():
        yield from _captured_on(cluster, cluster.choose(ranks), text, compiled, tell)


def _captured_on(
    cluster: Cluster, chosen: list[int], text: str, compiled: bool, tell: Tell
) -> Iterator[dict[int, Graph]]:
    doing = {rank: what for rank, what in cluster.doing(chosen).items() if what != "idle"}
    if gone := [rank for rank, what in doing.items() if what == "gone"]:
        raise ClusterError(cluster.why_gone(gone[0]))
    if doing:
        rank, what = next(iter(doing.items()))
        raise UsageError(
            f"rank {rank} is {what}: capture when it is idle, or stop it with %mlx_dist interrupt"
        )
    try:
        found = ask_ranks(cluster, chosen, tell, CAPTURE_SECONDS, "capture", text, compiled)
        graphs = {rank: each for rank, each in found.items() if isinstance(each, Graph)}
        if len(graphs) < len(found):
            why = next(why for rank, why in found.items() if rank not in graphs)
            alike = [rank for rank, each in found.items() if each == why]
            who = f"rank{'s' * (len(alike) > 1)} {', '.join(map(str, alike))}"
            others = f"; on rank {next(iter(graphs))} it can be captured" if graphs else ""
            raise UsageError(f"{who}: {why}{others}")
        yield graphs
    finally:
        if not cluster.client.closed:
            for rank in cluster.client.living() & set(chosen):
                cluster.client.on(rank).apply_async(on_kept, "forget")
