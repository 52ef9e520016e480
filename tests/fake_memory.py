"""Ranks that tell of a memory which a test makes up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlxbench_kernel.memory.record import COLUMNS, encode

GB = 1e9
SAMPLE = {
    "active": 2 * GB, "cache": 1 * GB, "peak": 4 * GB, "footprint": 3.5 * GB, "total": 32 * GB,
    "available": 18 * GB, "wired": 3 * GB, "compressed": 1 * GB, "swap": 0.5 * GB, "pressure": 1.0,
}  # fmt: skip
LIMITS = {"memory": 24_000_000_000, "cache": None, "wired": None, "cap": 22_000_000_000}


class FakeRanks:
    """As much of `mlxbench_kernel.remote.memory_feed.Asked` as the feed uses.

    Attributes
    ----------
    samples
        By rank what is other than in `SAMPLE`.
    pools
        By rank the keys of its pools.
    silent
        Ranks that do not answer.
    gone
        Ranks that are not there.
    push
        Whether they say that they send samples by themselves; a test then calls `hearer`.
    """

    def __init__(self, hosts: Sequence[str] = ("studio", "studio")) -> None:
        self.hosts = list(hosts)
        self.pids = [4000 + rank for rank in range(len(hosts))]
        self.samples: dict[int, dict[str, float]] = {rank: {} for rank in range(len(hosts))}
        self.marks: dict[int, list[list[Any]]] = {}
        self.records = dict.fromkeys(range(len(hosts)), "one")
        self.pools: dict[int, list[list[str | None]]] = {}
        self.silent: set[int] = set()
        self.gone: set[int] = set()
        self.closed = False
        self.asked: list[tuple[str, int, dict[str, Any]]] = []
        self.taken = dict.fromkeys(range(len(hosts)), 0)
        self.ahead = dict.fromkeys(range(len(hosts)), 0.0)  # seconds of their clocks
        self.said: dict[str, str] = {"said": "nothing happens"}
        self.holdings: dict[int, dict[str, Any]] = {}
        self.push = False
        self.hearer: Callable[[dict[str, Any]], None] | None = None

    def who(self) -> Sequence[tuple[int, str, int]]:
        return list(zip(range(len(self.hosts)), self.hosts, self.pids, strict=True))

    def living(self) -> Sequence[int]:
        return [rank for rank in range(len(self.hosts)) if rank not in self.gone]

    def why_gone(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]} is gone (killed by SIGKILL)"

    def how_gone(self, rank: int) -> str:
        return "killed by SIGKILL"

    def hear(self, take: Callable[[dict[str, Any]], None] | None) -> None:
        self.hearer = take

    def ask(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]:
        self.asked += [(name, rank, dict(own)) for rank, own in arguments.items()]
        answering = {r: own for r, own in arguments.items() if r not in self.silent | self.gone}
        return {rank: getattr(self, name)(rank, **own) for rank, own in answering.items()}

    def memory(
        self, rank: int, since: int, version: int, period: float, record: str, push: bool
    ) -> dict[str, Any]:
        now = time.time() + self.ahead[rank]
        values = {**dict.fromkeys(COLUMNS, np.nan), **SAMPLE, "time": now, **self.samples[rank]}
        self.taken[rank] += 1
        marks = self.marks.get(rank, [])
        told = {
            "record": self.records[rank], "next": self.taken[rank], "more": False, "now": now,
            "samples": encode(np.array([[values[name] for name in COLUMNS]])),
            "version": len(marks), "pushes": push and self.push,
        }  # fmt: skip
        if version != len(marks) or record != self.records[rank]:
            told["marks"] = marks
        return told

    def memory_mark(self, rank: int, name: str) -> None:
        self.marks.setdefault(rank, []).append([len(self.marks), "mark", name, time.time(), None])

    def memory_limits(self, rank: int) -> dict[str, Any]:
        return {**LIMITS, "allocator": "metal", "pools": self.pools.get(rank, [])}

    def memory_said(self, rank: int, sizes: Mapping[str, Any]) -> dict[str, str]:
        return self.said

    def memory_busy(self, rank: int) -> bool:
        return True

    def memory_looks(self, rank: int) -> list[list[Any]]:
        return [["Cell In[3]", 1.0]]

    def memory_look(self, rank: int, name: str) -> dict[str, Any] | None:
        return self.holdings[rank] if name == "Cell In[3]" else None

    def memory_holdings(self, rank: int) -> dict[str, Any]:
        return self.holdings[rank]
