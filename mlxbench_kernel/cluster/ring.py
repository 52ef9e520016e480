"""Sees that a ring that is forming holds the ranks and nobody else.

Every rank tells what its ring is connected to (`mlxbench_kernel.rank.neighbours`); a stranger
is who has connected to a rank without being the rank before it. The ranks are then let go of,
so that they can try again on other ports.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.errors import ClusterError

TRIES = 3
LOOK_SECONDS = 0.25  # between two looks at a ring that is forming
ANSWER_SECONDS = 2.0
SETTLE_SECONDS = 5.0
DEAF_SECONDS = 2.0  # that a rank which is joining may neither listen nor have been called
PROOF_SECONDS = 10.0

Links = dict[str, list[Any]]


class StrangerError(ClusterError):
    """Somebody else connected to a rank while the ring was forming.

    Attributes
    ----------
    rank, at
        Who took the stranger for its neighbour, and the address that it listened on.
    stranger
        The stranger's address; "" where only a neighbour's connection is missing.
    """

    def __init__(self, rank: int, host: str, at: str, stranger: str) -> None:
        self.rank, self.at, self.stranger = rank, at, stranger
        who = f"a stranger at {stranger}" if stranger else "a stranger, who hung up,"
        super().__init__(
            f"{who} connected to the ring of rank {rank} on {host} ({at}) while it was forming"
        )

    def finally_(self) -> ClusterError:
        """The error of the last try."""
        where = self.stranger.rsplit(":", 1)[0] or "a port scanner"
        return ClusterError(
            f"{self}, in {TRIES} tries: MLX's ring takes whoever connects first. Keep {where} away "
            "from the hosts' network, then %mlx_dist up again"
        )


class RingWatch:
    """Looks at one ring while it forms, and afterwards.

    Parameters
    ----------
    client
        Client of the cluster.
    hosts
        Names of the ranks' hosts.
    addresses
        For each rank what it listens on, ``"ip:port"``.
    """

    def __init__(
        self, client: BenchClient, hosts: Sequence[str], addresses: Sequence[Sequence[str]]
    ) -> None:
        self._client = client
        self._hosts = hosts
        self.addresses = addresses
        self._accepted: dict[int, list[list[str]]] = {}
        self._looked = time.monotonic()
        self._deaf_since: dict[int, float] = {}

    def look(self) -> None:
        """Look, not more often than makes sense; never waits long for a rank.

        Raises
        ------
        StrangerError
            There is one.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        links = self._ask("links", LOOK_SECONDS)
        self._compare(links)
        now = self._looked = time.monotonic()
        for rank, found in links.items():
            if found["listening"] or found["accepted"]:
                self._deaf_since.pop(rank, None)
            elif now - self._deaf_since.setdefault(rank, now) > DEAF_SECONDS:
                # Who hangs up with a reset leaves no trace.
                raise StrangerError(rank, self._hosts[rank], self.addresses[rank][0], "")

    def settle(self) -> None:
        """Once all ranks have joined: each has to have its neighbour, and nobody else.

        Raises
        ------
        StrangerError
            A rank has somebody else.
        ClusterError
            A rank does not answer.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            missing = self._compare(self._ask("links", ANSWER_SECONDS))
            if missing is None:
                return
            if time.monotonic() > deadline:
                rank, address = missing
                raise StrangerError(rank, self._hosts[rank], address, "")
            time.sleep(0.02)  # the other end of a connection appears in no event of this process

    def let_go(self) -> None:
        """Bring ranks out of what they are waiting for; those that are out help the others."""
        self._ask("let_go", LOOK_SECONDS)

    def _ask(self, name: str, timeout: float) -> dict[int, Any]:
        each = {
            rank: {"own": list(own), "right": list(self._right(rank))}
            for rank, own in enumerate(self.addresses)
        }
        return self._client.call_each(name, each, timeout)

    def _right(self, rank: int) -> Sequence[str]:
        return self.addresses[(rank + 1) % len(self.addresses)]

    def _compare(self, links: dict[int, Links]) -> tuple[int, str] | None:
        """Compare what a rank had accepted the time before with what its neighbour has opened.

        Not with what it has accepted now: the neighbour may have told before it connected.

        Returns
        -------
        rank, address
            Where no neighbour is connected yet; None where all are.
        """
        missing = None
        for rank, own in enumerate(self.addresses):
            left = (rank - 1) % len(self.addresses)
            accepted = self._accepted.get(rank, [])
            opened = links[left]["opened"] if left in links else None
            for address in own:
                ends = [end for at, end in accepted if at == address]
                if opened is not None:
                    for end in ends:
                        if [address, end] not in opened:
                            raise StrangerError(rank, self._hosts[rank], address, end)
                if opened is None or not ends:
                    missing = missing or (rank, address)
        self._accepted = {rank: found["accepted"] for rank, found in links.items()}
        return missing
