"""Somebody else connects to MLX's ring while it forms, which takes whoever comes first."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import machines
import pytest
from running import Recorded

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.cluster.forming import Forming
from mlxbench_kernel.errors import ClusterError
from mlxbench_kernel.rank.startup import Place


class Stranger:
    """Connects to a rank's port as soon as MLX listens on it.

    Attributes
    ----------
    manner
        "silent" waits, "talks" sends garbage, "leaves" hangs up at once with a reset.
    rank
        Whose port.
    tries
        How many rings are visited.
    attacked
        The addresses so far.
    """

    def __init__(self, manner: str, rank: int, tries: int) -> None:
        self.manner, self.rank, self.tries = manner, rank, tries
        self.attacked: list[str] = []
        self._taken = contextlib.ExitStack()

    def come(self, addresses: Sequence[Sequence[str]]) -> None:
        if len(self.attacked) == self.tries:
            return
        address = addresses[self.rank][0]
        self.attacked.append(address)
        ip, port = address.rsplit(":", 1)
        taken = self._taken.enter_context(socket.create_connection((ip, int(port))))
        if self.manner == "talks":
            taken.sendall(b"\xff" * 4096)
        elif self.manner == "leaves":
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            taken.close()

    def leave(self) -> None:
        self._taken.close()


@contextlib.contextmanager
def stranger(
    monkeypatch: pytest.MonkeyPatch, manner: str, rank: int, tries: int
) -> Iterator[Stranger]:
    """A stranger who comes before the last rank connects, when all others listen."""
    found = Stranger(manner, rank, tries)
    wait_for_listeners = Forming._wait_for_listeners

    def then_come(forming: Forming, places: Sequence[Place]) -> None:
        wait_for_listeners(forming, places)
        found.come([place.listens for place in places])

    monkeypatch.setattr(Forming, "_wait_for_listeners", then_come)
    try:
        yield found
    finally:
        found.leave()


@pytest.mark.parametrize(("manner", "rank"), [("silent", 1), ("leaves", 0)])
def test_a_stranger_in_the_ring_leads_to_another_try(
    namespaces: machines.Network,
    tmp_path: Path,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    manner: str,
    rank: int,
) -> None:
    with stranger(monkeypatch, manner, rank, tries=1) as found:
        cluster = Cluster.up(hostfile=namespaces.hostfile(tmp_path))
        try:
            code = "mx.distributed.all_sum(mx.array(rank + 1), group=group).item()"
            cluster.execute(code, output=recorded)
            assert [recorded.text(r) for r in range(3)] == ["6"] * 3
            (note,) = (note for note in cluster.info.notes if "stranger" in note)
            host = namespaces.machines[rank].name
            assert f"the ring of rank {rank} on {host} ({found.attacked[0]})" in note
            if manner != "leaves":
                assert f"a stranger at {namespaces.here}:" in note
        finally:
            assert cluster.down() == []


def test_a_stranger_who_stays_is_named(
    namespaces: machines.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stranger(monkeypatch, "talks", 1, tries=3) as found:
        with pytest.raises(ClusterError, match=f"Keep {namespaces.here} away") as caught:
            Cluster.up(hostfile=namespaces.hostfile(tmp_path))
        assert "in 3 tries" in str(caught.value) and "\n" not in str(caught.value)
        assert len(set(found.attacked)) == 3
