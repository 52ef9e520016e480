"""How long each operation of a lazy graph takes, measured on a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.given import given_arrays, on_own_thread
from mlxbench_kernel.graph.model import COLLECTIVES, Graph, Status
from mlxbench_kernel.graph.reader import read
from mlxbench_kernel.units import quantity

TOLD_EVERY = 500  # operations
MOST_SHOWN = 10  # operations, and modules
APART = (
    "Apart, each operation is waited for: short ones look longer than they are in the whole, and "
    "nothing runs side by side."
)


@dataclass(frozen=True)
class Profile:
    """Times of operations that were evaluated apart, one after the other.

    Attributes
    ----------
    seconds : float64 [nodes]
        Median of each node; 0 for inputs, and for collectives that were left out.
    whole
        Seconds of evaluating everything at once, median.
    repeat
        Of how many evaluations these are the medians.
    left_out : tuple of int
        Nodes of collectives that were not executed.
    graph
        What was measured.
    """

    seconds: NDArray[np.float64]
    whole: float
    repeat: int
    left_out: tuple[int, ...]
    graph: Graph

    @property
    def total(self) -> float:
        """The sum over all operations, in seconds."""
        return float(self.seconds.sum())

    @property
    def of_collectives(self) -> str:
        """What the times of collectives mean, or that they were left out; "" without any."""
        if self.left_out:
            names = sorted({self.graph.collective(node) for node in self.left_out})
            return (
                f"Left out: {len(self.left_out)} collectives ({', '.join(names)}); "
                "collectives=True executes them, on all ranks together."
            )
        if collectives_of(self.graph):
            return (
                "The time of a collective is from this rank's asking to its result: waiting for "
                "ranks that come later is in it."
            )
        return ""

    def by_primitive(self) -> dict[str, float]:
        """Seconds by primitive, the longest first."""
        sums = np.bincount(
            self.graph.primitive, weights=self.seconds, minlength=len(self.graph.primitives)
        )
        return _longest_first(dict(zip(self.graph.primitives, sums.tolist(), strict=True)))

    def by_scope(self, graph: Graph | None = None) -> dict[str, float]:
        """Seconds by path of a module, with those of the modules inside it, the longest first.

        Parameters
        ----------
        graph
            The same graph with its scopes, as a capture of a call has them. Without it, the
            one that was measured.

        Returns
        -------
        dict of str to float
            "" is everything.

        Raises
        ------
        UsageError
            It has another number of nodes than the graph that was measured.
        """
        graph = graph or self.graph
        if graph.nodes != len(self.seconds):
            raise UsageError(
                f"this profile is of {len(self.seconds)} nodes and the graph has {graph.nodes}: "
                "give the graph of the arrays that were profiled"
            )
        own = np.bincount(graph.scope, weights=self.seconds, minlength=len(graph.scopes))
        sums: dict[str, float] = {}
        for scope, seconds in zip(graph.scopes, own.tolist(), strict=True):
            for path in {"", *scope.parents, scope.path}:
                sums[path] = sums.get(path, 0.0) + seconds
        return _longest_first(sums)

    def __repr__(self) -> str:
        return f"<Profile: {str(self).splitlines()[0]}>"

    def __str__(self) -> str:
        ratio = f", {self.total / self.whole:.1f} ×" if self.whole else ""
        lines = [
            f"{quantity(self.total)}s, the sum of operations evaluated apart{ratio} the "
            f"{quantity(self.whole)}s of the whole (medians of {self.repeat}).",
            APART,
        ]
        lines += [line for line in (self.of_collectives,) if line]
        modules = dict(self.by_scope())
        modules.pop("", None)
        for title, parts in (("operation", self.by_primitive()), ("module", modules)):
            lines += [f"{'ms':>10} {'share':>7}  {title}"] * bool(parts)
            for name, seconds in list(parts.items())[:MOST_SHOWN]:
                share = seconds / self.total if self.total else 0.0
                lines.append(f"{seconds * 1e3:10.3f} {share:7.1%}  {name}")
        return "\n".join(lines)


def side_by_side(profiles: Mapping[int, Profile]) -> str:
    """What ranks measured of the same expression, a column for each: where one is late, it shows.

    Before the columns stands what such times mean, as in a single `Profile`.

    Parameters
    ----------
    profiles
        By rank.
    """
    ranks = list(profiles)
    parts = {rank: each.by_primitive() for rank, each in profiles.items()}
    rows: dict[str, list[float]] = {
        "whole": [each.whole for each in profiles.values()],
        "sum of operations": [each.total for each in profiles.values()],
    }
    names = _longest_first(
        {name: max(each.get(name, 0.0) for each in parts.values())
         for name in {name: None for each in parts.values() for name in each}}
    )  # fmt: skip
    for name in list(names)[:MOST_SHOWN]:
        rows[name] = [parts[rank].get(name, 0.0) for rank in ranks]
    repeats = ", ".join(dict.fromkeys(str(each.repeat) for each in profiles.values()))
    said = dict.fromkeys(each.of_collectives for each in profiles.values() if each.of_collectives)
    lines = [f"Operations were evaluated apart (medians of {repeats}). {APART}", *said]
    lines += ["".join(f"{f'rank {rank}':>12}" for rank in ranks) + "  ms"]
    for name, seconds in rows.items():
        lines.append("".join(f"{each * 1e3:12.3f}" for each in seconds) + f"  {name}")
    return "\n".join(lines)


def check_rounds(repeat: int, warm_up: int) -> None:
    """See that `profile` can measure something.

    Raises
    ------
    UsageError
        The numbers make no sense.
    """
    if repeat < 1 or warm_up < 0:
        raise UsageError(
            f"repeat={repeat}, warm_up={warm_up} measures nothing: give repeat=1 or more and "
            "warm_up=0 or more"
        )


def profile(
    outputs: Any,
    repeat: int = 5,
    warm_up: int = 1,
    collectives: bool = False,
    graph: Graph | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Profile:
    """Measure each operation that lazy arrays are computed by, on a copy of their graph.

    The arrays stay lazy. Results are kept no longer than later operations need them. What is
    evaluated does use memory, so MLX's peak may rise.

    Parameters
    ----------
    outputs
        Lazy arrays: one, or any nesting of lists, dicts and modules that holds some.
    repeat
        How often everything is measured, at least once.
    warm_up
        How often everything is evaluated before that.
    collectives
        Execute collectives too: all ranks then have to call this together, with the same
        arguments. Their times have the waiting for other ranks in them. Otherwise their input,
        or zeros, stands for their result.
    graph
        Their graph with names and scopes, as a capture has it.
    progress
        Told the fraction done (0 to 1), and what is under way.

    Raises
    ------
    UsageError
        There is no native module, no array, nothing lazy, the graph is another one, the numbers
        make no sense, or the arrays belong to another thread.
    """
    check_rounds(repeat, warm_up)
    outputs = given_arrays("profile", outputs)
    replay = replayed(outputs, collectives=collectives, donate=True)
    graph = graph_of(outputs, graph)
    if (graph.status[graph.outputs] != Status.UNSCHEDULED).all():
        raise UsageError(
            "these arrays are evaluated already, nothing is left to measure: profile them before "
            "they are read or given to mx.eval"
        )
    with on_own_thread():
        rounds, wholes = _measured(replay, graph.nodes, repeat, warm_up, progress)
    return Profile(
        seconds=np.median(rounds, axis=0),
        whole=float(np.median(wholes)),
        repeat=repeat,
        left_out=() if collectives else collectives_of(graph),
        graph=graph,
    )


def _measured(
    replay: Any,
    nodes: int,
    repeat: int,
    warm_up: int,
    progress: Callable[[float, str], None] | None,
) -> tuple[NDArray[np.float64], list[float]]:
    """Seconds of each node, [repeat, nodes], and of the whole, [repeat]."""
    rounds = np.zeros((repeat, nodes))
    wholes: list[float] = []
    try:
        for number in range(-warm_up, repeat):
            replay.restart()
            for begin in range(0, nodes, TOLD_EVERY):
                if progress is not None:
                    done = (number + warm_up + begin / nodes) / (warm_up + repeat)
                    progress(0.9 * done, "operations apart")
                for node in range(begin, min(begin + TOLD_EVERY, nodes)):
                    seconds = replay.step()
                    if number >= 0:
                        rounds[number, node] = seconds
        for number in range(-warm_up, repeat):
            if progress is not None:
                progress(0.9 + 0.1 * (number + warm_up) / (warm_up + repeat), "the whole")
            wholes.append(replay.whole())
    finally:
        replay.restart()  # the traceback of an error would hold what is half done
    return rounds, wholes[warm_up:]


def collectives_of(graph: Graph) -> tuple[int, ...]:
    """The nodes of a graph that are collectives, in order."""
    kinds = [i for i, name in enumerate(graph.primitives) if name in COLLECTIVES]
    return tuple(np.flatnonzero(np.isin(graph.primitive, kinds)).tolist())


def graph_of(outputs: Sequence[mx.array], graph: Graph | None) -> Graph:
    """The graph of lazy arrays, read anew where there is none.

    Raises
    ------
    UsageError
        It is the graph of other arrays.
    """
    found = read(outputs)
    if graph is None:
        return found
    if not np.array_equal(graph.id, found.id):
        raise UsageError(
            f"the graph of {graph.nodes} nodes is not that of these arrays, which has "
            f"{found.nodes}: give the graph of the same arrays, or none"
        )
    return graph


def replayed(outputs: Sequence[mx.array], collectives: bool, donate: bool) -> Any:
    """A copy of the graph of lazy arrays, to be evaluated node by node.

    Parameters
    ----------
    outputs
        Lazy arrays.
    collectives
        Execute collectives too.
    donate
        Let operations write into inputs that nothing needs afterwards, as MLX does.

    Raises
    ------
    UsageError
        There is no native module.
    """
    module = native.load()
    if module is None:
        raise UsageError(f"evaluating a copy needs the native module: {native.reason()}")
    return module.Replay(list(outputs), collectives, donate)


def _longest_first(seconds: dict[str, float]) -> dict[str, float]:
    kept = ((name, value) for name, value in seconds.items() if value > 0)
    return dict(sorted(kept, key=lambda item: -item[1]))
