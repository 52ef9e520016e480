"""What is free on the hosts of a cluster, as a plan takes it, over ranks that make up answers."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cluster import SAMPLE, cluster_info

from mlxbench_kernel.cluster.looking import Looking
from mlxbench_kernel.cluster.state import RankInfo
from mlxbench_kernel.errors import ClusterError

GB = 10**9
HOST = ["host", None, None]


class Ranks(Looking):
    """Of each rank its host, what is free to it, and its answer to ``memory_limits``."""

    def __init__(self, told: list[tuple[str, int, dict[str, Any]]]) -> None:
        answers = {rank: answer for rank, (_, _, answer) in enumerate(told) if answer}
        client: Any = SimpleNamespace(call=lambda name, ranks, timeout: answers, engines=[])
        machinery: Any = None
        super().__init__(cluster_info(len(told)), machinery, client)
        self._told = told

    def status(self) -> list[RankInfo]:
        return [
            RankInfo(
                rank, host, 1, "gpu", "0",
                dataclasses.replace(SAMPLE, active=2 * GB, available=free * GB),
            )
            for rank, (host, free, _) in enumerate(self._told)
        ]  # fmt: skip


def answer(*pools: list[str | None], cap: int | None = None) -> dict[str, Any]:
    return {"pools": list(pools), "cap": cap}


def test_ranks_of_a_host_share_what_is_free_there() -> None:
    own = answer(HOST)
    ranks = Ranks([("studio", 40, own), ("studio", 39, own), ("mini", 9, own)])
    assert ranks.free_memory() == {"studio": (39 * GB, 2), "mini": (9 * GB, 1)}


def test_a_gpu_with_memory_of_its_own_is_shared_by_those_alone_that_use_it() -> None:
    gpus = [answer(["cuda", uuid, None], HOST) for uuid in ("GPU-a", "GPU-b", "GPU-b")]
    ranks = Ranks([("box", 70, gpus[0]), ("box", 60, gpus[1]), ("box", 60, gpus[2])])
    assert ranks.free_memory() == {"box, rank 0": (70 * GB, 1), "box, ranks 1, 2": (60 * GB, 2)}


def test_of_a_unified_pool_the_gpu_may_have_no_more_than_its_cap() -> None:
    own = answer(["unified", None, None], cap=48 * GB)
    assert Ranks([("studio", 60, own)] * 2).free_memory() == {"studio": (44 * GB, 2)}
    assert Ranks([("studio", 20, own)] * 2).free_memory() == {"studio": (20 * GB, 2)}


def test_a_rank_that_does_not_answer_is_not_taken_for_one_without_limits() -> None:
    with pytest.raises(ClusterError, match="rank 1 on studio does not answer"):
        Ranks([("studio", 40, answer(HOST)), ("studio", 40, {})]).free_memory()
