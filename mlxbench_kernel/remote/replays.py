"""Evaluates copies of graphs on ranks, node by node: for times, and for NaN and Inf.

Ranks capture the expression and keep its arrays. When their graphs are compared, and nobody would
wait for ever, a cell evaluates the copies: the collectives in them are executed as those of any
cell, so that an interrupt, an error on one rank or a rank that dies frees the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import Graph, Profile, RanksNonFinite, origins, out_of_step
from mlxbench_kernel.graph.messages import pair_of
from mlxbench_kernel.graph.profile import check_rounds, collectives_of
from mlxbench_kernel.remote.asking import Tell, ask_ranks
from mlxbench_kernel.remote.graphs import captured_on


def profile_on(
    cluster: Cluster,
    text: str,
    ranks: Sequence[int],
    repeat: int = 5,
    warm_up: int = 1,
    collectives: bool = True,
    compiled: bool = True,
    tell: Tell = lambda text: None,
) -> dict[int, Profile]:
    """Measure on ranks how long each operation of an expression takes; its arrays stay lazy.

    Parameters
    ----------
    cluster
        Where the ranks are.
    text
        The expression, see `mlxbench_kernel.graph.capture_expression`.
    ranks
        Which ones, all at once.
    repeat, warm_up
        As for `mlxbench_kernel.graph.profile`.
    collectives
        Execute collectives too; the time of one has the waiting for other ranks in it. False
        leaves them out.
    compiled
        As for `mlxbench_kernel.graph.capture`.
    tell
        Is told in words what was done about a fault.

    Returns
    -------
    dict
        By rank, with the graph that was captured there, its scopes and names.

    Raises
    ------
    UsageError
        As `mlxbench_kernel.remote.capture_on`; the numbers make no sense; or the ranks would
        wait for one another for ever, because not all are asked that the graph has collectives
        with, or because their graphs differ in them.
    ClusterError
        A rank is gone, or evaluating failed there.
    KeyboardInterrupt
        After the ranks were interrupted too; they are idle, with all their variables.
    """
    check_rounds(repeat, warm_up)
    with replays_on(cluster, text, ranks, compiled, tell) as replays:
        return replays.profile(repeat, warm_up, collectives)


def nonfinite_on(
    cluster: Cluster,
    text: str,
    ranks: Sequence[int],
    collectives: bool = True,
    compiled: bool = True,
    tell: Tell = lambda text: None,
) -> RanksNonFinite:
    """Find on ranks the first operation whose result has NaN or Inf while what it takes has none.

    Parameters
    ----------
    cluster, text, ranks, compiled, tell
        As for `profile_on`.
    collectives
        Execute collectives too, so that what comes from another rank is followed to it. False
        has their input, or zeros, stand for their result: each rank finds its own alone.

    Returns
    -------
    RanksNonFinite
        What each rank found, and on which rank it begins; as text a line for each rank.

    Raises
    ------
    UsageError, ClusterError, KeyboardInterrupt
        As `profile_on`.
    """
    with replays_on(cluster, text, ranks, compiled, tell) as replays:
        return replays.nonfinite(collectives)


class Replays:
    """What ranks captured and keep, to be evaluated as often as wanted; `replays_on` makes it.

    Attributes
    ----------
    graphs : dict of int to Graph
        By rank.
    """

    def __init__(self, cluster: Cluster, text: str, graphs: dict[int, Graph], tell: Tell) -> None:
        self.graphs = graphs
        self._cluster, self._text, self._tell = cluster, text, tell

    def profile(
        self, repeat: int = 5, warm_up: int = 1, collectives: bool = True
    ) -> dict[int, Profile]:
        """As `profile_on`, of what was captured."""
        check_rounds(repeat, warm_up)
        found = self._ask(collectives, "profile", repeat, warm_up, collectives)
        return {
            rank: Profile(seconds, whole, repeat, left_out, self.graphs[rank])
            for rank, (seconds, whole, left_out) in found.items()
        }

    def nonfinite(self, collectives: bool = True) -> RanksNonFinite:
        """As `nonfinite_on`, of what was captured."""
        return origins(self.graphs, self._ask(collectives, "trace", collectives))

    def _ask(self, collectives: bool, *wanted: object) -> dict[int, Any]:
        """Have the ranks evaluate copies together; what each of them found."""
        for rank, graph in self.graphs.items():
            if not graph.complete:
                raise UsageError(
                    f"rank {rank}: evaluating a copy needs the native module, which is not there "
                    "(%mlx_dist status says why)"
                )
        if collectives:
            _check(self._cluster, self._text, self.graphs)
        name, *arguments = wanted
        return ask_ranks(self._cluster, list(self.graphs), self._tell, None, str(name), *arguments)


@contextmanager
def replays_on(
    cluster: Cluster,
    text: str,
    ranks: Sequence[int],
    compiled: bool = True,
    tell: Tell = lambda text: None,
) -> Iterator[Replays]:
    """Capture an expression on ranks, once, for the graphs and all that is to be measured of it.

    Parameters
    ----------
    cluster, text, ranks, compiled, tell
        As for `profile_on`.

    Raises
    ------
    UsageError, ClusterError
        As `mlxbench_kernel.remote.capture_on`.
    """
    with captured_on(cluster, text, ranks, compiled, tell) as graphs:
        yield Replays(cluster, text, graphs, tell)


def _check(cluster: Cluster, text: str, graphs: dict[int, Graph]) -> None:
    """See that nobody would wait for ever in a collective.

    Raises
    ------
    UsageError
        Somebody would.
    """
    everyone = set(range(cluster.size))
    for rank, graph in graphs.items():
        for node in collectives_of(graph):
            peer = pair_of(graph, node)
            missing = sorted((everyone if peer is None else {peer}) - set(graphs))
            if missing:
                others = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
                raise UsageError(
                    f"{text} has collectives on rank {rank}, of which {graph.collective(node)} "
                    f"would wait for {others} for ever: ask for all ranks (--ranks all), or leave "
                    "collectives out (collectives=False)"
                )
    if len(graphs) > 1 and (said := out_of_step(graphs)):
        raise UsageError(
            f"{text}: {said}. The ranks would wait for one another for ever; nothing was evaluated"
        )
