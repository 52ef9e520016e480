"""What memory a model is planned for that ranks of a notebook are to load."""

from __future__ import annotations

from typing import Any

import pytest

from mlxbench_kernel.memory.fit.hosts import read_hosts
from mlxbench_kernel.remote.planned import against_link, pools_of


def rank(free: int, held: int = 0, pool: str = "") -> dict[str, Any]:
    return {"pool": pool, "free": free, "held": held}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([rank(50), rank(40)], {"a": (40, 2)}),
        ([rank(50, 10), rank(50, 20)], {"a": (80, 2)}),
        ([rank(70, 5, "G1"), rank(60, 0, "G2")], {"a, GPU 0": (75, 1), "a, GPU 1": (60, 1)}),
        ([rank(70, 0, "G1"), rank(69, 0, "G1")], {"a": (69, 2)}),
    ],
)
def test_ranks_that_share_memory_are_told_from_those_with_their_own(
    told: list[dict[str, Any]], found: dict[str, tuple[int, int]]
) -> None:
    pools = pools_of({0: "a", 1: "a"}, dict(enumerate(told)))
    assert pools == found
    assert sum(len(host.ranks) for host in read_hosts(pools)) == 2


def test_each_host_has_its_own() -> None:
    pools = pools_of({0: "a", 1: "b"}, {0: rank(50), 1: rank(20, 30)})
    assert pools == {"a": (50, 1), "b": (50, 1)}


def test_nccl_has_no_pipeline() -> None:
    assert "type shard='tensor' or 'data'" in against_link("pipeline", "nccl", 2)
    assert not against_link("pipeline", "ring", 2) and not against_link("tensor", "nccl", 2)
    assert not against_link("pipeline", "nccl", 1)
