"""What the notebook keeps of its ranks' memory, and the bars that are made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fake_memory import GB, SAMPLE, FakeRanks
from pressing import wait

from mlxbench_kernel.memory.record import COLUMNS, encode
from mlxbench_kernel.remote import memory_feed
from mlxbench_kernel.remote.bar import Bar
from mlxbench_kernel.remote.lateness import how_late
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.remote.memory_feed import MemoryFeed
from mlxbench_kernel.remote.pool_bars import bars

NAN = float("nan")


@contextmanager
def feeding(asked: FakeRanks) -> Iterator[MemoryFeed]:
    feed = MemoryFeed(asked)
    try:
        yield feed
    finally:
        feed.close()


def parts(bar: Bar) -> dict[tuple[str, int], float]:
    return {(each.kind, each.rank): round(each.bytes / GB, 3) for each in bar.segments}


def test_there_is_something_to_show_at_once_and_more_comes() -> None:
    asked = FakeRanks()
    with feeding(asked) as feed:
        assert [each.last["active"] for each in feed.ranks] == [2 * GB, 2 * GB]
        heard: list[int] = []
        end = feed.watch(lambda: heard.append(feed.ranks[0].ring.taken))
        wait(lambda: len(heard) > 3)
        assert heard[-1] > heard[0]
        end()


def test_ranks_of_one_host_share_its_bar_and_are_told_apart() -> None:
    asked = FakeRanks(["studio", "studio", "mini"])
    asked.samples[1] = {"active": 4 * GB, "cache": 0.0, "footprint": 4.5 * GB}
    with feeding(asked) as feed:
        studio, mini = bars(feed.ranks, {})
    assert (studio.host, studio.total, mini.host) == ("studio", 32 * GB, "mini")
    assert parts(studio) == {
        ("system", -1): 4, ("others", -1): 2, ("active", 0): 2, ("cache", 0): 1,
        ("rest", 0): 0.5, ("active", 1): 4, ("cache", 1): 0, ("rest", 1): 0.5, ("free", -1): 18,
    }  # fmt: skip
    assert sum(each.bytes for each in studio.segments) == studio.total
    assert (studio.pressure, studio.swap, studio.unknown) == ("warn", 0.5 * GB, ())


def test_what_is_not_known_is_no_zero() -> None:
    asked = FakeRanks(["studio"])
    asked.samples[0] = {"wired": NAN, "compressed": NAN, "swap": NAN, "pressure": NAN}
    with feeding(asked) as feed:
        (bar,) = bars(feed.ranks, {})
    assert bar.unknown == ("wired", "compressed", "swap", "pressure") and bar.pressure == ""
    assert np.isnan(bar.swap)
    assert ("system", -1) not in parts(bar) and parts(bar)["others", -1] == 32 - 18 - 3.5


def test_what_mlx_has_but_the_system_does_not_charge_takes_no_room() -> None:
    asked = FakeRanks(["studio"])
    asked.samples[0] = {"active": 9 * GB, "footprint": 3 * GB}
    with feeding(asked) as feed:
        (bar,) = bars(feed.ranks, {})
    assert parts(bar)["active", 0] == 3 and parts(bar)["cache", 0] == 0


def test_a_gpu_with_memory_of_its_own_is_a_second_bar() -> None:
    asked = FakeRanks(["box"])
    asked.samples[0] = {"gpu_total": 80 * GB, "gpu_available": 70 * GB}
    with feeding(asked) as feed:
        host, gpu = bars(feed.ranks, {0: {"memory limit": 76 * GB}})
    assert parts(host)["rest", 0] == 3.5 and ("active", 0) not in parts(host)
    assert parts(gpu) == {
        ("others", -1): 7, ("active", 0): 2, ("cache", 0): 1, ("free", -1): 70,
    }, "of a GPU nobody tells what the system has"  # fmt: skip
    assert gpu.pool == "GPU of rank 0" and not host.markers


ON_GPU = {"gpu_total": 80 * GB, "gpu_available": 60 * GB}


def test_ranks_on_one_gpu_share_its_bar() -> None:
    asked = FakeRanks(["box", "box", "box"])
    asked.samples = {0: ON_GPU, 1: {**ON_GPU, "active": 5 * GB}, 2: ON_GPU}
    asked.pools = {
        0: [["cuda", "GPU-a", None], ["host", None, None]],
        1: [["cuda", "GPU-a", None], ["host", None, None]],
        2: [["cuda", "GPU-b", None], ["host", None, None]],
    }
    memory = Memory(asked)
    try:
        host, first, second = bars(memory.feed.ranks, memory.markers)
        assert (host.pool, first.pool, second.pool) == (
            "host", "GPU of ranks 0, 1", "GPU of rank 2",
        )  # fmt: skip
        assert parts(first) == {
            ("others", -1): 11, ("active", 0): 2, ("cache", 0): 1, ("active", 1): 5,
            ("cache", 1): 1, ("free", -1): 60,
        }  # fmt: skip
        assert "peak of rank 1" in {each.name for each in first.markers}
        asked.gone.add(1)
        wait(lambda: memory.feed.ranks[1].why)
        _, first, second = bars(memory.feed.ranks, memory.markers)
        assert parts(first)["held", 1] == 6 and "rank 1 died" in first.said[0]
        assert second.said == ()
    finally:
        memory.close()


def test_ranks_in_containers_with_limits_of_their_own_share_no_bar() -> None:
    asked = FakeRanks()
    asked.pools = {rank: [["host", None, f"/sys/fs/cgroup/{rank}"]] for rank in (0, 1)}
    memory = Memory(asked)
    try:
        found = bars(memory.feed.ranks, memory.markers)
        assert [each.pool for each in found] == ["memory of rank 0", "memory of rank 1"]
    finally:
        memory.close()


def test_markers_stand_where_what_they_limit_would_end() -> None:
    asked = FakeRanks()
    limits = {rank: {"GPU cap": 20 * GB, "memory limit": (30 + rank) * GB} for rank in (0, 1)}
    with feeding(asked) as feed:
        (bar,) = bars(feed.ranks, limits)
    marked = {each.name: (each.bytes / GB, each.at / GB) for each in bar.markers}
    system_and_others = 4 + 32 - 18 - 4 - 7
    assert marked == {
        "peak of rank 0": (4, system_and_others + 4),
        "peak of rank 1": (4, system_and_others + 3.5 + 4),
        "GPU cap": (20, system_and_others + 20),
    }, "the memory limits end beyond the pool"


def test_a_rank_that_died_says_so_and_since_when() -> None:
    asked = FakeRanks()
    with feeding(asked) as feed:
        asked.gone.add(1)
        wait(lambda: feed.ranks[1].why)
        taken = feed.ranks[0].ring.taken
        wait(lambda: feed.ranks[0].ring.taken > taken)
        said = how_late(feed.ranks[1])
        assert said.startswith("gone since ") and "killed by SIGKILL" in said
        since = feed.ranks[1].since
        assert since is not None
        (bar,) = bars(feed.ranks, {}, now=since + 12)
        assert bar.said == ("rank 1 died 12 s ago (killed by SIGKILL)",)
        assert ("active", 1) not in parts(bar), "nobody has that any more"
        held = next(each for each in bar.segments if each.rank == 1)
        assert (held.kind, held.bytes, held.state) == ("held", 3.5 * GB, "gone")
        assert {each.state for each in bar.segments if each.rank != 1} == {""}
        assert bar.free == 18 * GB, "what it held is free"
        assert sum(each.bytes for each in bar.segments) == bar.total
        asked.gone.clear()
        asked.pids[1], asked.records[1], asked.taken[1] = 5001, "two", 0
        wait(lambda: feed.ranks[1].since is None)
        assert how_late(feed.ranks[1]) == "" and feed.ranks[1].pid == 5001
        assert bars(feed.ranks, {})[0].said == ()


def test_a_host_whose_ranks_are_all_gone_is_shown_as_it_was() -> None:
    asked = FakeRanks(["studio", "mini"])
    with feeding(asked) as feed:
        asked.gone.add(1)
        wait(lambda: feed.ranks[1].why)
        studio, mini = bars(feed.ranks, {}, now=time.time() + 200)
        assert studio.said == (), "it answers"
        assert mini.said == ("rank 1 died 3 min ago (killed by SIGKILL)",) and mini.stale > 100
        assert parts(mini)["active", 1] == 2
        assert {each.state for each in mini.segments if each.rank == 1} == {"gone"}


def test_of_a_cluster_that_is_down_that_is_said() -> None:
    asked = FakeRanks(["studio"])
    with feeding(asked) as feed:
        asked.closed = True
        wait(lambda: feed.ranks[0].why)
        (bar,) = bars(feed.ranks, {}, now=time.time() + 60)
        assert bar.said == ("rank 0 has been gone for 60 s: the cluster is down",)


def test_a_late_host_does_not_hold_up_the_others() -> None:
    asked = FakeRanks(["studio", "mini"])
    with feeding(asked) as feed:
        asked.silent.add(1)
        wait(lambda: feed.ranks[1].since)
        asked.asked.clear()
        taken = feed.ranks[0].ring.taken
        wait(lambda: feed.ranks[0].ring.taken > taken + 3)
        assert how_late(feed.ranks[1]).startswith("no answer since ")
        later = time.time() + 10
        assert [bar.stale > 0 for bar in bars(feed.ranks, {}, now=later)] == [True, True]
        mini = bars(feed.ranks, {}, now=feed.ranks[1].last["time"] + 10)[1]
        assert mini.said == ("rank 1 has not answered for 10 s: as it was then",)
        assert {each.state for each in mini.segments if each.rank == 1} == {"late"}
        asked.silent.clear()
        wait(lambda: feed.ranks[1].since is None)


def test_clocks_of_other_hosts_are_brought_to_ours() -> None:
    asked = FakeRanks(["studio", "mini"])
    asked.ahead[1] = 3600.0
    asked.marks[1] = [[0, "cell", "Cell In[1]", time.time() + 3600, None]]
    with feeding(asked) as feed:
        assert abs(feed.ranks[1].last["time"] - time.time()) < 5
        assert abs(feed.ranks[1].marks[0].begin - time.time()) < 5
        assert abs(feed.ranks[0].skew) <= memory_feed.SKEW


def test_marks_of_a_process_that_is_gone_stay() -> None:
    asked = FakeRanks(["studio"])
    asked.marks[0] = [[0, "cell", "Cell In[1]", 1.0, 2.0]]
    with feeding(asked) as feed:
        asked.records[0], asked.marks[0] = "two", [[0, "cell", "Cell In[2]", 3.0, 4.0]] * 2
        wait(lambda: len(feed.ranks[0].marks) == 3)
        asked.marks[0].append([1, "cell", "Cell In[3]", 5.0, None])
        wait(lambda: len(feed.ranks[0].marks) == 4)
        assert feed.ranks[0].marks[0].name == "Cell In[1]"


def test_the_past_of_another_process_does_not_come_after_what_is_known() -> None:
    """As where ranks were dropped, and one of those that stay has the number of another."""
    asked = FakeRanks()
    with feeding(asked) as feed:
        ring = feed.ranks[1].ring
        asked.pids[1], asked.records[1] = 4002, "two"
        asked.samples[1]["time"] = time.time() - 100
        asked.asked.clear()
        wait(lambda: [rank for name, rank, _ in asked.asked if name == "memory"].count(1) > 1)
        del asked.samples[1]["time"]
        taken = ring.taken
        wait(lambda: ring.taken > taken)
        _, rows = ring.since(0)
        assert (np.diff(rows[:, 0]) > 0).all()


def test_it_ends_with_its_cluster_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_feed, "DOWN_SECONDS", 0.3)
    asked = FakeRanks()
    with feeding(asked) as feed:
        heard: list[bool] = []
        feed.watch(lambda: heard.append(feed.closed))
        asked.closed = True
        wait(lambda: heard and heard[-1])
        assert "the cluster is down" in how_late(feed.ranks[0])
        wait(lambda: asked.hearer is None)


def test_one_that_is_closed_says_so() -> None:
    with feeding(FakeRanks()) as feed:
        heard: list[bool] = []
        feed.watch(lambda: heard.append(feed.closed))
        feed.close()
        wait(lambda: heard and heard[-1])


def pushed(asked: FakeRanks, **also: Any) -> None:
    """Rank 0 sends its next sample by itself."""
    now = time.time()
    assert asked.hearer is not None
    asked.taken[0] += 1
    version = len(asked.marks.get(0, []))
    values = {**dict.fromkeys(COLUMNS, NAN), **SAMPLE, "time": now, "active": asked.taken[0] * GB}
    asked.hearer(
        {
            "record": asked.records[0], "next": asked.taken[0], "was": version,
            "version": version, "marks": [],
            "samples": encode(np.array([[values[name] for name in COLUMNS]])), **also,
        }
    )  # fmt: skip


@contextmanager
def pushing(asked: FakeRanks) -> Iterator[MemoryFeed]:
    """A feed of one rank that sends by itself, and has said so."""
    asked.push = True
    with feeding(asked) as feed:
        end = feed.watch(lambda: None)
        wait(lambda: feed.ranks[0].pushes and feed.ranks[0].cursor == asked.taken[0])
        yield feed
        end()


def test_what_ranks_send_by_themselves_is_not_asked_for() -> None:
    asked = FakeRanks(["studio"])
    with pushing(asked) as feed:
        asked.asked.clear()
        for _ in range(3):
            pushed(asked)
        wait(lambda: feed.ranks[0].cursor == asked.taken[0])
        assert feed.ranks[0].last["active"] == asked.taken[0] * GB
        assert asked.asked == []


def test_a_lost_message_is_asked_for() -> None:
    asked = FakeRanks(["studio"])
    with pushing(asked) as feed:
        known, asked.taken[0] = feed.ranks[0].cursor, asked.taken[0] + 3
        pushed(asked)
        wait(lambda: asked.asked and asked.asked[-1][2]["since"] == known)
        wait(lambda: not feed.ranks[0].behind)
        assert feed.ranks[0].cursor == asked.taken[0]


def test_marks_come_with_what_ranks_send_and_lost_ones_are_asked_for() -> None:
    asked = FakeRanks(["studio"])
    asked.marks[0] = [[0, "cell", "Cell In[1]", 1.0, None]]
    with pushing(asked) as feed:
        asked.asked.clear()
        ended, begun = [0, "cell", "Cell In[1]", 1.0, 2.0], [1, "cell", "Cell In[2]", 3.0, None]
        asked.marks[0] = [ended, begun]
        pushed(asked, was=1, marks=[ended, begun])
        wait(lambda: len(feed.ranks[0].marks) == 2)
        assert not feed.ranks[0].marks[0].lasts and feed.ranks[0].marks[1].lasts
        assert asked.asked == []
        asked.marks[0] = [*asked.marks[0], [2, "mark", "lost", 4.0, None], begun]
        pushed(asked, was=3, marks=[begun])
        wait(lambda: [each.name for each in feed.ranks[0].marks].count("lost"))
        assert asked.asked


def test_what_comes_late_or_of_another_process_changes_nothing() -> None:
    asked = FakeRanks(["studio"])
    with pushing(asked) as feed:
        taken = feed.ranks[0].ring.taken
        asked.taken[0] -= 1
        pushed(asked)  # what an answer has told already
        pushed(asked, record="another")
        pushed(asked)
        wait(lambda: feed.ranks[0].cursor == asked.taken[0])
        assert feed.ranks[0].ring.taken - taken in (1, 2), "the one between came with an answer"


def test_one_who_begins_to_watch_has_samples_sent() -> None:
    asked = FakeRanks(["studio"])
    asked.push = True
    with feeding(asked) as feed:
        wait(lambda: len(asked.asked) > 1)
        assert not any(each["push"] for _, _, each in asked.asked), "nobody looks"
        end = feed.watch(lambda: None)
        wait(lambda: feed.ranks[0].pushes)
        end()
        asked.asked.clear()
        wait(lambda: asked.asked)
        assert not asked.asked[-1][2]["push"]
    wait(lambda: asked.hearer is None)
