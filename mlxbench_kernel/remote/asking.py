"""Has ranks do something for the notebook, in a cell that no history shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipyparallel
import numpy as np

from mlxbench_kernel.cluster import OWN_CELL, Cluster
from mlxbench_kernel.errors import ClusterError, GivenUp, StorageError, UsageError
from mlxbench_kernel.remote import results
from mlxbench_kernel.remote.kept import on_kept
from mlxbench_kernel.remote.said import SAID

ANSWER_SECONDS = 60.0
STOP_SECONDS = 1.0  # from one request to stop to the next

STOPPED = "stopped on all ranks; %mlx_dist status tells how they are"
DONE = "the ranks had done it already; what they found was not fetched"

_AS_THEY_ARE = {each.__name__: each for each in (UsageError, StorageError)}

Tell = Callable[[str], None]
Heard = Callable[[int, dict[str, Any]], None]


def ask_ranks(
    cluster: Cluster,
    ranks: Sequence[int],
    tell: Tell,
    timeout: float | None,
    name: str,
    *arguments: Any,
    of: Callable[..., Any] = on_kept,
    show: Tell = lambda text: None,
    result: bool = True,
    heard: Heard = lambda rank, told: None,
) -> dict[int, Any]:
    """Have ranks do something; the results, by rank.

    That is done in a cell, which no history shows, so that what stops, frees and mends ranks
    when a cell goes wrong does so here: an interrupt, an error on one rank, a rank that dies.
    Of a cell of the user's the others end what they can, then; here nobody would use that, so
    they are stopped at once.

    Parameters
    ----------
    cluster, ranks
        Where.
    tell
        Is told in words what was done about a fault.
    timeout
        Seconds to wait at most; None for as long as it takes.
    name, *arguments
        What is to be done, and what that takes.
    of
        Who does it there: a function of a module, of these.
    show
        Is told who is late, "" for nobody, while the ranks are at it.
    result
        Whether the results are wanted.
    heard
        Is told, on the client's thread, what ranks say meanwhile (`said.say`).

    Raises
    ------
    UsageError, StorageError
        It is raised on a rank.
    ClusterError
        Another error was raised on a rank, or a rank is gone.
    GivenUp
        Ctrl-C; the ranks have stopped, or it has not begun.
    """
    code = cell_of(of, name, *arguments)
    stop = _StopWithTheFirst(cluster, ranks, show, heard)
    # Until the results are here: another thread's would take their place.
    with cluster.between(show), cluster.turns.taken(show):
        with _given_up(STOPPED):
            ended = cluster.execute(code, ranks=ranks, timeout=timeout, output=stop, tell=tell)
        _raise_first(ended.errors, ranks)
        with _given_up(DONE):
            return taken(cluster, ranks, of) if result else {}


@contextmanager
def _given_up(said: str) -> Iterator[None]:
    """Have a Ctrl-C be one line."""
    try:
        yield
    except GivenUp:
        raise
    except KeyboardInterrupt:
        raise GivenUp(said) from None


def cell_of(of: Callable[..., Any], name: str, *arguments: Any) -> str:
    """The cell in which `ask_ranks` has ranks do something."""
    call = f"__import__({results.__name__!r}, fromlist=['keep']).keep"
    return f"{OWN_CELL}\n{call}(*{(of.__module__, of.__name__, name, *_written(arguments))!r})"


def _written(value: Any) -> Any:
    """A value so that its ``repr`` is read on a rank: NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {_written(key): _written(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_written, value))
    return value


def _raise_first(errors: dict[int, dict[str, Any]], ranks: Sequence[int]) -> None:
    """Raise what went wrong first, if anything did."""
    gone = {rank for rank, error in errors.items() if error["ename"] == ClusterError.__name__}
    said = {(error["ename"], error["evalue"]) for error in errors.values()}
    if {ename for ename, _ in said} == {KeyboardInterrupt.__name__}:
        raise ClusterError("interrupted")  # some may have ended just before
    if len(errors) == len(ranks) > 1 and len(said) == 1 and not gone:
        ename, evalue = said.pop()
        if ename in _AS_THEY_ARE:
            raise _AS_THEY_ARE[ename](evalue)
        raise ClusterError(f"all ranks: {ename}: {evalue}")
    for rank, error in sorted(errors.items(), key=lambda item: (item[0] not in gone, item[0])):
        if rank in gone:
            raise ClusterError(error["evalue"])
        if error["ename"] in _AS_THEY_ARE:
            raise _AS_THEY_ARE[error["ename"]](f"rank {rank}: {error['evalue']}")
        raise ClusterError(f"rank {rank}: {error['ename']}: {error['evalue']}")


def taken(cluster: Cluster, ranks: Sequence[int], of: Callable[..., Any]) -> dict[int, Any]:
    """What ranks have found, see `ask_ranks`."""
    name = of.__module__, of.__name__
    calls = {rank: cluster.client.on(rank).apply_async(results.take, *name) for rank in ranks}
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
    show, heard
        As for `ask_ranks`.
    """

    def __init__(self, cluster: Cluster, ranks: Sequence[int], show: Tell, heard: Heard) -> None:
        self._cluster, self._show, self._heard = cluster, show, heard
        self._ranks = set(ranks)
        self._asked = 0.0
        self._heard_any = False

    def refresh(self, status: str) -> None:
        """Look for ranks that are gone; the client waits for the cell in this thread meanwhile."""
        self._show(status)
        client, now = self._cluster.client, time.monotonic()
        left = client.living() & self._ranks
        if left != self._ranks and now - self._asked > STOP_SECONDS:
            self._asked = now
            client.call("interrupt", sorted(left), timeout=STOP_SECONDS)

    def message(self, rank: int, kind: str, content: dict[str, Any]) -> bool:
        """Hand on what is said; nothing is shown of what is printed."""
        told = content.get("data", {}).get(SAID) if kind == "display_data" else None
        if told is None:
            return False
        self._heard(rank, told)
        is_first, self._heard_any = not self._heard_any, True
        return is_first

    def page(self, rank: int, data: dict[str, Any]) -> None:
        """Nothing here uses the pager."""

    def done(self, rank: int) -> None:
        """The result is asked for when all have ended."""

    def finish(self) -> None:
        """There is nothing to show."""
