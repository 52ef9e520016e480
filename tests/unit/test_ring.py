"""Who is in a ring, compared from what its ranks tell."""

from __future__ import annotations

from typing import Any

import pytest

from mlxbench_kernel.cluster import ring

ADDRESSES = [["10.0.0.1:1001"], ["10.0.0.2:1002"], ["10.0.0.3:1003"]]
ENDS = ["10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.3:7003"]  # that the ranks connect from


class Client:
    """Answers with links that a test has put there."""

    def __init__(self) -> None:
        self.links: dict[int, dict[str, list[Any]]] = {
            rank: {
                "listening": [],
                "accepted": [[ADDRESSES[rank][0], ENDS[rank - 1]]],
                "opened": [[ADDRESSES[(rank + 1) % 3][0], ENDS[rank]]],
            }
            for rank in range(3)
        }

    def call_each(self, name: str, arguments: Any, timeout: float) -> dict[int, Any]:
        assert name == "links"
        assert arguments[2] == {"own": ADDRESSES[2], "right": ADDRESSES[0]}
        return self.links


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def watch(client: Client, monkeypatch: pytest.MonkeyPatch) -> ring.RingWatch:
    monkeypatch.setattr(ring, "LOOK_SECONDS", 0.0)
    return ring.RingWatch(client, ["a", "b", "c"], ADDRESSES)  # type: ignore[arg-type]


def test_a_ring_of_the_ranks_is_right(watch: ring.RingWatch) -> None:
    watch.look()
    watch.settle()


def test_a_stranger_is_named(client: Client, watch: ring.RingWatch) -> None:
    client.links[1]["accepted"] = [[ADDRESSES[1][0], "10.0.0.9:5"]]
    client.links[0]["opened"] = []
    watch.look()  # rank 0 may have connected since
    with pytest.raises(ring.StrangerError) as caught:
        watch.look()
    assert str(caught.value) == (
        "a stranger at 10.0.0.9:5 connected to the ring of rank 1 on b (10.0.0.2:1002) "
        "while it was forming"
    )
    assert "Keep 10.0.0.9 away" in str(caught.value.finally_())


def test_a_stranger_on_a_ranks_own_host_is_one_too(client: Client, watch: ring.RingWatch) -> None:
    client.links[1]["accepted"] = [[ADDRESSES[1][0], "10.0.0.1:5"]]
    with pytest.raises(ring.StrangerError, match=r"10\.0\.0\.1:5"):
        watch.settle()


def test_a_rank_that_has_yet_to_tell_is_waited_for(client: Client, watch: ring.RingWatch) -> None:
    del client.links[0]
    watch.look()
    watch.look()


def test_a_stranger_who_hung_up(
    client: Client, watch: ring.RingWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "DEAF_SECONDS", 0.0)
    monkeypatch.setattr(ring, "SETTLE_SECONDS", 0.0)
    client.links[1]["accepted"] = []
    watch.look()
    with pytest.raises(ring.StrangerError, match="a stranger, who hung up, connected"):
        watch.look()
    with pytest.raises(ring.StrangerError, match="ring of rank 1 on b"):
        watch.settle()
