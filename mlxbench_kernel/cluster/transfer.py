"""Moves values between the notebook and ranks; arrays travel as buffers, bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeVar

import ipyparallel

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.machinery import Progress
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.memory import format_bytes
from mlxbench_kernel.rank import arrays, pieces

Place = TypeVar("Place")

WINDOW = 4  # pieces on their way to or from each rank
PATIENCE = 2.0  # seconds after which it is said what ranks are doing instead


class Transfer:
    """One way to or from some ranks.

    Parameters
    ----------
    client
        Client of the cluster.
    ranks
        Which ones.
    doing
        Gives what ranks are doing, by rank.
    progress
        Called with the fraction done and a text, where there is something to wait for.
    """

    def __init__(
        self,
        client: BenchClient,
        ranks: Sequence[int],
        doing: Callable[[Sequence[int]], dict[int, str]],
        progress: Progress | None = None,
    ) -> None:
        self._client = client
        self._ranks = list(ranks)
        self._view = client.direct_view([client.engine(rank) for rank in ranks])
        self._doing = doing
        self._progress = progress or (lambda done, text: None)
        self._done = 0.0

    def push(self, values: Mapping[str, Any]) -> None:
        """Put values into the namespaces of the ranks and wait until they are there.

        Parameters
        ----------
        values
            By name: any nesting of dict, list and tuple with `mlx.core.array` of every dtype,
            NumPy arrays, and plain values.

        Raises
        ------
        UsageError
            A value cannot be sent; none was.
        ClusterError
            A rank is gone.
        """
        for name in values:
            if not name.isidentifier():
                raise UsageError(f"{name!r} is not a variable's name")
        try:
            parts = arrays.take_apart(dict(values))
        except TypeError as error:
            raise UsageError(
                f"{error}. That cannot be sent to ranks: make it there, in a %%mlx_dist cell"
            ) from None
        sent = pieces.Sent.of(parts)

        def put(place: tuple[int, int]) -> ipyparallel.AsyncResult:
            index, offset = place
            piece = pieces.piece(parts.arrays[index], offset)
            return self._view.apply_async(pieces.put, index, offset, piece)

        with self._cleared(sent.forms):
            if sent.forms:
                self._answers(self._view.apply_async(pieces.expect, sent.forms))
            for _ in self._in_flight(put, list(pieces.places(sent.forms)), WINDOW, "pushing"):
                pass
            self._answers(self._view.apply_async(pieces.bind, sent))

    def pull(self, names: Sequence[str]) -> dict[int, Any]:
        """Fetch variables of the ranks.

        Returns
        -------
        dict
            For each rank a dict of values by name.

        Raises
        ------
        UsageError
            Ranks lack a name, or a value cannot be sent; the message says which.
        ClusterError
            A rank is gone.
        """
        fetched = self._answers(self._view.apply_async(pieces.fetch, list(names)))
        replies = dict(zip(self._ranks, fetched, strict=True))
        for kind, say in (("missing", _missing), ("refused", _refused)):
            where = {rank: said for rank, (is_kind, said) in replies.items() if is_kind == kind}
            if where:
                raise UsageError(say(where, len(self._ranks)))
        sent = {rank: offered for rank, (_, offered) in replies.items()}
        landed = self._collect(sent)
        try:
            return {rank: sent[rank].put_together(landed[rank]) for rank in sent}
        except (AttributeError, ImportError) as error:
            raise UsageError(
                f"a value is of a class that this notebook does not have: {error}. Nothing was "
                "pulled; define the class here too, or pull the value's parts"
            ) from None

    def results(self) -> dict[int, Any]:
        """Fetch the value of each rank's last cell, as text where it cannot be sent."""
        fetched = self._answers(self._view.apply_async(pieces.fetch_result))
        replies = dict(zip(self._ranks, fetched, strict=True))
        landed = self._collect({rank: offered for rank, (_, offered) in replies.items()})
        found = {}
        for rank, (text, offered) in replies.items():
            try:
                found[rank] = offered.put_together(landed[rank])
            except (AttributeError, ImportError):  # of a class that only the rank has
                found[rank] = text
        return found

    def _collect(self, sent: Mapping[int, pieces.Sent]) -> dict[int, dict[int, pieces.Landing]]:
        """Fetch the large arrays that ranks offer, from all of them at once."""
        landed = {
            rank: {index: pieces.Landing(form) for index, form in offered.forms.items()}
            for rank, offered in sent.items()
        }
        by_rank = [
            [(rank, *place) for place in pieces.places(offered.forms)]
            for rank, offered in sent.items()
            if offered.forms
        ]
        places = [place for turn in zip_longest(*by_rank) for place in turn if place is not None]

        def give(place: tuple[int, int, int]) -> ipyparallel.AsyncResult:
            rank, index, offset = place
            return self._client.direct_view([self._client.engine(rank)]).apply_async(
                pieces.give, index, offset
            )

        with self._cleared(places):
            window = WINDOW * len(by_rank)
            for (rank, index, offset), (piece,) in self._in_flight(give, places, window, "pulling"):
                landed[rank][index].put(offset, piece)
            if places:
                self._answers(self._view.apply_async(pieces.forget))
        return landed

    def _in_flight(
        self,
        start: Callable[[Place], ipyparallel.AsyncResult],
        places: Sequence[Place],
        most: int,
        what: str,
    ) -> Iterator[tuple[Place, list[Any]]]:
        """Start something for every place, at most `most` at a time; their answers, in order."""
        flying: deque[tuple[Place, ipyparallel.AsyncResult]] = deque()
        text = f"{what} {format_bytes(len(places) * pieces.PIECE)}"
        waiting = iter(places)
        for count in range(len(places)):
            for place in waiting:
                flying.append((place, start(place)))
                if len(flying) >= most:
                    break
            place, pending = flying.popleft()
            yield place, self._answers(pending)
            self._done = (count + 1) / len(places)
            self._progress(self._done, text)

    def _answers(self, pending: ipyparallel.AsyncResult) -> list[Any]:
        """What the ranks returned; what goes wrong there is said in one line."""
        while not pending.ready():
            pending.wait(PATIENCE)
            if not pending.ready():
                doing = self._doing(self._ranks)
                busy = [f"rank {rank} is {what}" for rank, what in doing.items() if what != "idle"]
                self._progress(self._done, f"waiting: {', '.join(busy) or 'for the ranks'}")
        try:
            return list(pending.get())
        except (ipyparallel.error.CompositeError, ipyparallel.error.RemoteError) as error:
            first = error.elist[0] if hasattr(error, "elist") else (error.ename, error.evalue)
            if first[0] == "EngineError":
                raise ClusterError(
                    "a rank is gone: %mlx_dist status says which, %mlx_dist restart starts all anew"
                ) from None
            raise UsageError(
                f"the ranks could not take it: {first[0]}: {first[1]}. Classes and functions of "
                "this notebook are not there: define them in a %%mlx_dist cell, or in a module "
                "beside it"
            ) from None

    @contextmanager
    def _cleared(self, large: Any) -> Iterator[None]:
        """Let the ranks go of large arrays, if there are any, when a transfer is broken off."""
        try:
            yield
        except BaseException:
            if large:
                self._view.apply_async(pieces.forget)
            raise


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
