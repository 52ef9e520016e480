"""Until when a rank stays."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from mlxbench_kernel.cluster import lifetime
from mlxbench_kernel.rank.lifetime import Lifetime


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_rank_with_an_owner_stays_as_long_as_that_whatever_the_silence() -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    clock = Clock()
    life = Lifetime(owner.pid, psutil.Process(owner.pid).create_time(), 600.0, clock)
    clock.now = 1e9
    assert not life.over()
    owner.kill()
    owner.wait()
    assert "notebook's kernel is gone" in life.over()


def test_another_process_with_the_owners_number_is_not_the_owner() -> None:
    assert Lifetime(os.getpid(), psutil.Process().create_time() - 60, 600.0).over()


def test_a_rank_without_an_owner_stays_until_it_was_silent_for_long() -> None:
    clock = Clock()
    life = Lifetime(0, 0.0, 600.0, clock)
    clock.now = 599.0
    assert not life.over()
    life.heard()
    clock.now = 1198.0
    assert not life.over()
    clock.now = 1199.0
    assert "600 s" in life.over()


def test_what_ranks_are_told() -> None:
    here, there = {"ssh": ""}, {"ssh": "mac-a"}
    assert f"--RankEngine.owner={os.getpid()}" in lifetime.arguments(here, keep=False)
    assert lifetime.arguments(there, keep=False) == ["--RankEngine.silence=600.0"]
    for plan in (here, there):
        assert lifetime.arguments(plan, keep=True) == ["--RankEngine.silence=604800.0"]
    assert (lifetime.patience(False), lifetime.patience(True)) == ("10 min", "7 days")
