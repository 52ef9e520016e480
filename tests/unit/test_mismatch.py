"""The collective logs of ranks, put side by side."""

from __future__ import annotations

from typing import Any

import pytest

from mlxbench_kernel.cluster.mismatch import agrees, aligned, describe, find_mismatch


def entry(turn: int, operation: str = "all_sum", **changed: Any) -> dict[str, Any]:
    return {
        "link": 0, "operation": operation, "peer": -1, "turn": turn, "shape": (4,),
        "dtype": "float32", "line": "Cell In[1], line 2", **changed,
    }  # fmt: skip


def test_the_first_difference_is_told_for_each_rank() -> None:
    logs = {
        0: [entry(0), entry(1, shape=(8,)), entry(2, dtype="int8")],
        1: [entry(0), entry(1), entry(2)],
    }
    found = find_mismatch(logs)
    assert "rank 0: all_sum  float32 [8]  Cell In[1], line 2\n" in str(found)
    assert str(found).endswith("rank 1: all_sum  float32 [4]  Cell In[1], line 2")


@pytest.mark.parametrize(
    "changed", [{"operation": "all_gather"}, {"shape": (2, 2)}, {"dtype": "float16"}]
)
def test_operation_shape_and_dtype_count(changed: dict[str, Any]) -> None:
    assert find_mismatch({0: [entry(0)], 1: [{**entry(0), **changed}]}) is not None
    assert not agrees({0: entry(0), 1: {**entry(0), **changed}})


def test_lines_and_being_late_are_no_mismatch() -> None:
    logs = {0: [entry(0), entry(1)], 1: [entry(0, line="Cell In[1], line 9")]}
    assert find_mismatch(logs) is None
    assert [sorted(row) for row in aligned(logs)] == [[0, 1], [0]]


def test_only_the_last_link_and_what_nobody_has_forgotten_count() -> None:
    logs = {
        0: [entry(0, shape=(9,)), *(entry(turn, link=1) for turn in range(5))],
        1: [entry(turn, link=1) for turn in range(3, 5)],  # the rest is forgotten there
    }
    rows = aligned(logs)
    assert [row[0]["turn"] for row in rows] == [3, 4]
    assert find_mismatch(logs) is None
    assert aligned({0: [], 1: []}) == []


def test_a_send_that_does_not_fit_its_receive() -> None:
    logs = {
        0: [entry(0, "send", peer=1), entry(1, "send", peer=1, shape=(3,))],
        1: [entry(0, "recv", peer=0), entry(1, "recv", peer=0, shape=(2,))],
    }
    found = str(find_mismatch(logs))
    assert "rank 0: send to rank 1  float32 [3]" in found
    assert "rank 1: recv from rank 0  float32 [2]" in found


def test_ranks_that_wait_for_one_another_in_different_things() -> None:
    logs = {0: [entry(0, "recv", peer=1)], 1: [entry(0)]}
    assert find_mismatch(logs) is None
    found = find_mismatch(logs, blocked={0: ("recv", 1, 0), 1: ("all_sum", -1, 0)})
    assert "rank 0: recv from rank 1" in str(found) and "rank 1: all_sum" in str(found)


def test_a_collective_without_a_line_is_described() -> None:
    assert describe(entry(0, shape=(), line="")) == "all_sum  float32 []"
