"""Follows NaN and Inf through collectives, to the rank that they come from."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mlxbench_kernel.graph.collective_order import collectives
from mlxbench_kernel.graph.in_step import pair_of
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.nonfinite import NonFinite, Traced
from mlxbench_kernel.graph.profile import collectives_of

# Where ranks meet: which of the collectives of all, or which message from one rank to another.
_Meeting = tuple[int, int, int]


@dataclass(frozen=True)
class RanksNonFinite:
    """What ranks found that were looked through together.

    Attributes
    ----------
    found : dict of int to NonFinite or None
        The first operation of each rank that is not finite, as `first_nonfinite` gives it; a
        collective, where that brought NaN or Inf from another rank.
    came_from : dict of int to tuple of int
        For those ranks that were given it by others, from which.
    origins : dict of int to NonFinite
        Where it begins: of the ranks that made it themselves, those that did so first in the
        common order of collectives. Empty where everything that was asked for is finite.
    where
        That place in the order, as "before collective 2 (all_sum)"; "" without collectives.
    """

    found: Mapping[int, NonFinite | None]
    came_from: Mapping[int, tuple[int, ...]]
    origins: Mapping[int, NonFinite]
    where: str

    def __str__(self) -> str:
        lines = []
        for rank, found in self.found.items():
            line = f"rank {rank}: {found or 'everything is finite'}"
            if rank in self.came_from:
                line += f"; it came from {_ranks(self.came_from[rank])}"
            lines.append(line)
        if len(self.found) > 1 and self.origins:
            where = f", {self.where}" if self.where else ""
            lines.append(f"first on {_ranks(tuple(self.origins))}{where}")
            lines += [
                f"rank {rank}, which gave it away: {origin}"
                for rank, origin in self.origins.items()
                if not _is_at(self.found[rank], origin.node)
            ]
        return "\n".join(lines)


def origins(graphs: Mapping[int, Graph], traces: Mapping[int, Traced]) -> RanksNonFinite:
    """Put together what ranks found that looked through their graphs together.

    Parameters
    ----------
    graphs, traces
        By rank; the graphs are in step (`in_step.out_of_step`).
    """
    meetings = {rank: _meetings(rank, graph) for rank, graph in graphs.items()}
    given = {
        rank: {meetings[rank][node]: found for node, found in trace.given.items()}
        for rank, trace in traces.items()
    }
    came_from: dict[int, tuple[int, ...]] = {}
    made: dict[int, list[NonFinite]] = {}
    for rank, trace in traces.items():
        waiting = [] if trace.found is None else [(rank, trace.found)]
        seen, makers = set[tuple[int, int]](), set[int]()
        while waiting:
            at, found = waiting.pop()
            if (at, found.node) in seen:
                continue
            seen.add((at, found.node))
            meeting = meetings[at].get(found.node)
            givers = {r: g[meeting] for r, g in given.items() if meeting in g}
            if givers:
                waiting += givers.items()
            else:  # made here, also where a sum of what is finite is not
                makers.add(at)
                if trace.found is not None and trace.found.reaches:
                    made.setdefault(at, []).append(found)
        if makers - {rank}:
            came_from[rank] = tuple(sorted(makers))
    firsts = {rank: min(each, key=lambda found: found.node) for rank, each in made.items()}
    places = {rank: _place(graphs[rank], found.node) for rank, found in firsts.items()}
    earliest = {
        rank: firsts[rank] for rank in sorted(places) if places[rank] == min(places.values())
    }
    return RanksNonFinite(
        found={rank: trace.found for rank, trace in traces.items()},
        came_from=came_from,
        origins=earliest,
        where=next((_where(graphs[rank], found.node) for rank, found in earliest.items()), ""),
    )


def _is_at(found: NonFinite | None, node: int) -> bool:
    return found is not None and found.node == node


def _meetings(rank: int, graph: Graph) -> dict[int, _Meeting]:
    """By node, what is the same on the ranks that meet there."""
    counts: Counter[tuple[int, int]] = Counter()
    found: dict[int, _Meeting] = {}
    for node in collectives_of(graph):
        peer = pair_of(graph, node)
        sends = graph.collective(node) == "send"
        pair = (-1, -1) if peer is None else (rank, peer) if sends else (peer, rank)
        found[node] = (*pair, counts[pair])
        counts[pair] += 1
    return found


def _place(graph: Graph, node: int) -> int:
    """How many collectives of all ranks are before a node."""
    return bisect_left(collectives(graph, numbered=True), node)


def _where(graph: Graph, node: int) -> str:
    nodes, place = collectives(graph, numbered=True), _place(graph, node)
    if place == len(nodes):
        return "after the last collective" if nodes else ""
    how = "in" if nodes[place] == node else "before"
    return f"{how} collective {place + 1} ({graph.collective(nodes[place])})"


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
