"""Captures graphs on ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipyparallel

from mlxbench_kernel.cluster import OWN_CELL, Cluster
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.graph import Graph
from mlxbench_kernel.remote.kept import on_kept

CAPTURE_SECONDS = 120.0
ANSWER_SECONDS = 60.0
STOP_SECONDS = 1.0  # from one request to stop to the next

Tell = Callable[[str], None]


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
    chosen = cluster.choose(ranks)
    doing = {rank: what for rank, what in cluster.doing(chosen).items() if what != "idle"}
    if doing:
        rank, what = next(iter(doing.items()))
        raise UsageError(
            f"rank {rank} is {what}: capture when it is idle, or stop it with %mlx_dist interrupt"
        )
    try:
        found = ask_ranks(cluster, chosen, tell, CAPTURE_SECONDS, "capture", text, compiled)
        graphs = {rank: each for rank, each in found.items() if isinstance(each, Graph)}
        if len(graphs) < len(found):
            rank, why = next((rank, why) for rank, why in found.items() if rank not in graphs)
            others = f"; on rank {next(iter(graphs))} it can be captured" if graphs else ""
            raise UsageError(f"rank {rank}: {why}{others}")
        yield graphs
    finally:
        if not cluster.client.closed:
            for rank in cluster.client.living() & set(chosen):
                cluster.client.on(rank).apply_async(on_kept, "forget")


def ask_ranks(
    cluster: Cluster,
    ranks: Sequence[int],
    tell: Tell,
    timeout: float | None,
    name: str,
    *arguments: Any,
) -> dict[int, Any]:
    """Have ranks call a method of `remote.kept.Kept`; the results, by rank.

    That is done in a cell, which no history shows, so that what stops, frees and mends ranks
    when a cell goes wrong does so here: an interrupt, an error on one rank, a rank that dies.
    Of a cell of the user's the others end what they can, then; here nobody would use that, so
    they are stopped at once.

    Parameters
    ----------
    cluster, ranks, tell
        As for `captured_on`.
    timeout
        Seconds to wait at most; None for as long as it takes.
    name, *arguments
        The method and what it takes.

    Raises
    ------
    UsageError
        The method does on a rank.
    ClusterError
        Another error was raised on a rank, or a rank is gone.
    """
    call = f"__import__({on_kept.__module__!r}, fromlist=['on_kept']).on_kept"
    code = f"{OWN_CELL}\n{call}(*{(name, *arguments)!r})"
    stop = _StopWithTheFirst(cluster, ranks)
    errors = cluster.execute(code, ranks=ranks, timeout=timeout, output=stop, tell=tell).errors
    gone = {rank for rank, error in errors.items() if error["ename"] == ClusterError.__name__}
    for rank, error in sorted(errors.items(), key=lambda item: (item[0] not in gone, item[0])):
        if rank in gone:
            raise ClusterError(error["evalue"])
        if error["ename"] == UsageError.__name__:
            raise UsageError(f"rank {rank}: {error['evalue']}")
        raise ClusterError(f"rank {rank}: {error['ename']}: {error['evalue']}")
    calls = {rank: cluster.client.on(rank).apply_async(on_kept, "take") for rank in ranks}
    found = {}
    for rank, sent in calls.items():
        try:
            found[rank] = sent.get(ANSWER_SECONDS)
        except ipyparallel.error.TimeoutError:
            raise ClusterError(
                f"rank {rank} has not sent what it found in {ANSWER_SECONDS:g} s"
            ) from None
        except ipyparallel.error.RemoteError as error:
            raise ClusterError(f"rank {rank}: {error.ename}: {error.evalue}") from None
    return found


class _StopWithTheFirst:
    """In place of a cell's output: when a rank is gone, the others need not go on.

    Parameters
    ----------
    cluster
        Where the ranks are.
    ranks
        Where the cell runs.
    """

    def __init__(self, cluster: Cluster, ranks: Sequence[int]) -> None:
        self._cluster = cluster
        self._ranks = set(ranks)
        self._asked = 0.0

    def refresh(self, status: str) -> None:
        """Look for ranks that are gone; the client waits for the cell in this thread meanwhile."""
        client, now = self._cluster.client, time.monotonic()
        left = client.living() & self._ranks
        if left != self._ranks and now - self._asked > STOP_SECONDS:
            self._asked = now
            client.call("interrupt", sorted(left), timeout=STOP_SECONDS)

    def message(self, rank: int, kind: str, content: dict[str, Any]) -> None:
        """Nothing is shown of what a copy prints."""

    def page(self, rank: int, data: dict[str, Any]) -> None:
        """Nothing here uses the pager."""

    def done(self, rank: int) -> None:
        """The result is asked for when all have ended."""

    def finish(self) -> None:
        """There is nothing to show."""
