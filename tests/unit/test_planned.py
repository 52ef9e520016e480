"""What a model is planned for that ranks of a notebook are to load."""

from __future__ import annotations

from mlxbench_kernel.remote.planned import against_link, with_room


def test_what_ranks_give_back_is_free_where_they_are() -> None:
    hosts = {"a": (100, 2), "b, rank 2": (50, 1), "b, rank 3": (40, 1)}
    assert with_room(hosts, [1, 2, 4, 8]) == {
        "a": (103, 2), "b, rank 2": (54, 1), "b, rank 3": (48, 1),
    }  # fmt: skip


def test_nccl_has_no_pipeline() -> None:
    assert "type shard='tensor' or 'data'" in against_link("pipeline", "nccl", 2)
    assert not against_link("pipeline", "ring", 2) and not against_link("tensor", "nccl", 2)
    assert not against_link("pipeline", "nccl", 1)
