"""Makes ranks one group, at first and again: agree on addresses, try the paths, join."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import wait
from typing import Any, NoReturn

from mlxbench_kernel.cluster import rendezvous, ring
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.errors import ClusterError
from mlxbench_kernel.rank import neighbours, ports, startup
from mlxbench_kernel.rank.startup import Place

PATH_SECONDS = 5.0
LISTEN_SECONDS = 1.0


class Forming:
    """The ranks of one group, and a time by which it has to be there.

    Parameters
    ----------
    client
        Client of the cluster.
    hosts
        One per rank.
    backend
        ring, jaccl, jaccl-ring, nccl or mpi.
    timeout
        Seconds, from now.
    """

    def __init__(
        self, client: BenchClient, hosts: Sequence[Host], backend: str, timeout: float
    ) -> None:
        self._client = client
        self._hosts = hosts
        self._backend = backend
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout

    def _places(self) -> list[Place]:
        """Reserve ports and try all paths; what each rank needs to join."""
        hosts, backend = self._hosts, self._backend
        size = len(hosts)
        ips = rendezvous.reservations(backend, hosts)
        addresses = self.on_ranks(ports.reserve, [(own,) for own in ips])
        wanted = rendezvous.targets(backend, addresses)
        self._check(addresses, wanted)
        settings = rendezvous.settings(backend, hosts, addresses)
        name = rendezvous.init_name(backend)
        return [
            Place(
                rank, size, name, s.variables, s.files, tuple(addresses[rank]), tuple(wanted[rank])
            )
            for rank, s in enumerate(settings)
        ]

    def _check(self, addresses: list[list[str]], wanted: list[list[str]]) -> None:
        hosts = self._hosts
        failed = self.on_ranks(ports.unreachable, [(paths, PATH_SECONDS) for paths in wanted])
        for rank, unreachable in enumerate(failed):
            for address, why in unreachable.items():
                target = next(r for r, own in enumerate(addresses) if address in own)
                raise ClusterError(
                    f"rank {rank} on {hosts[rank].ssh} cannot reach rank {target} on "
                    f"{hosts[target].ssh} at {address} ({why}): look at the cable, the address "
                    "in the hostfile and the firewall there; %mlx_dist doctor --hostfile F tries "
                    "every path"
                )

    def form(
        self,
        calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
        again: Callable[[str], None] = lambda text: None,
    ) -> list[Any]:
        """Have every rank join, by a function of its own.

        A ring has to hold the ranks and nobody else: where a stranger has got into it, all
        start over on other ports.

        Parameters
        ----------
        calls
            For each rank the function, which takes its `Place`, and what it takes besides.
        again
            Told why, before another try.

        Returns
        -------
        list
            What the functions return.

        Raises
        ------
        ClusterError
            One of them failed, a rank cannot reach another one, or there always was a stranger.
        """
        for number in range(ring.TRIES):
            places = self._places()
            names = [host.ssh for host in self._hosts]
            watch = ring.RingWatch(self._client, names, [place.listens for place in places])
            try:
                return self._join(places, calls, watch)
            except ring.StrangerError as error:
                if number + 1 == ring.TRIES:
                    raise error.finally_() from None
                again(str(error))
                self._start_over(watch, error)
        raise AssertionError

    def _join(
        self,
        places: Sequence[Place],
        calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
        watch: ring.RingWatch,
    ) -> list[Any]:
        watched = self._backend == "ring" and len(places) > 1
        self.on_ranks(startup.prepare, [() for _ in places])
        # All ranks let go before one starts: it might connect to a reservation that is still open.
        self.on_ranks(ports.release, [() for _ in places])
        functions = [function for function, _ in calls]
        arguments = [(place, *more) for place, (_, more) in zip(places, calls, strict=True)]
        found = self.on_ranks(
            functions,
            arguments,
            before_last=lambda: self._wait_for_listeners(places),
            meanwhile=(lambda _: watch.look()) if watched else None,
        )
        if watched:
            watch.settle()
            self._prove(places)
        return found

    def _prove(self, places: Sequence[Place]) -> None:
        deadline = time.monotonic() + ring.PROOF_SECONDS

        def wrong(rank: int) -> NoReturn:
            raise ring.StrangerError(rank, self._hosts[rank].ssh, places[rank].listens[0], "")

        def give_up(waiting: Collection[int]) -> None:
            if time.monotonic() > deadline:
                wrong(min(waiting))

        arguments = [(place.rank, place.size) for place in places]
        right = self.on_ranks(neighbours.prove, arguments, meanwhile=give_up)
        if not all(right):
            wrong(right.index(False))

    def _start_over(self, watch: ring.RingWatch, error: ring.StrangerError) -> None:
        """Bring all ranks out of a wrong ring."""
        everyone = [() for _ in watch.addresses]
        try:
            self.on_ranks(neighbours.is_out, everyone, meanwhile=lambda _: watch.let_go())
            self.on_ranks(neighbours.start_over, [(list(own),) for own in watch.addresses])
        except ClusterError as failure:
            raise ClusterError(f"{error}; {failure}") from None

    def _wait_for_listeners(self, places: Sequence[Place]) -> None:
        """In a ring, wait until all ranks but the last one listen.

        The last one connects first, and MLX tries again only after a second
        (``mlx/distributed/ring/ring.cpp`` and ``utils.cpp``). A rank without the native module
        does not answer while it listens; then nothing is waited for.
        """
        if self._backend != "ring":
            return
        # Of several addresses MLX listens on one after the other.
        waiting = {place.rank: place.listens[0] for place in places[:-1]}
        deadline = time.monotonic() + LISTEN_SECONDS
        while waiting and time.monotonic() < deadline:
            for rank, address in list(waiting.items()):
                found = self._client.call("listening", [rank], LISTEN_SECONDS / 4, address=address)
                if found.get(rank, True):
                    del waiting[rank]

    def on_ranks(
        self,
        function: Callable[..., Any] | Sequence[Callable[..., Any]],
        arguments: Sequence[tuple[Any, ...]],
        before_last: Callable[[], None] = lambda: None,
        meanwhile: Callable[[Collection[int]], None] | None = None,
    ) -> list[Any]:
        """Call a function on all ranks at once, each with its own arguments.

        Parameters
        ----------
        function
            One for all, or one for each.
        arguments
            For each rank.
        before_last
            The last rank is called after this has returned.
        meanwhile
            Called with the ranks that are still at it; may raise.

        Raises
        ------
        ClusterError
            It failed on a rank, or time is up.
        """
        functions = [function] * len(arguments) if callable(function) else list(function)
        calls = []
        for rank, own in enumerate(arguments):
            if rank == len(arguments) - 1:
                before_last()
            calls.append(self._client.on(rank).apply_async(functions[rank], *own))
        pending = dict(enumerate(calls))
        while pending:
            for rank, call in list(pending.items()):
                if call.done():
                    del pending[rank]
                    error = call.exception()
                    if error is not None:
                        text = getattr(error, "evalue", str(error))
                        raise ClusterError(f"rank {rank} on {self._hosts[rank].ssh}: {text}")
            if pending and time.monotonic() > self._deadline:
                rank = min(pending)
                raise ClusterError(
                    f"rank {rank} on {self._hosts[rank].ssh} did not finish "
                    f"{functions[rank].__name__} within {self._timeout:g} s (--timeout)"
                )
            wait(list(pending.values()), timeout=0.05)
            if pending and meanwhile is not None:
                meanwhile(pending)
        return [call.get() for call in calls]
