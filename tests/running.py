"""What tests on real ranks share: recorded output, and the processes there are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

from mlxbench_kernel.cluster import Cluster


class Recorded:
    """Output of a cell, as text by rank."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, str, dict[str, Any]]] = []
        self.statuses: list[str] = []

    def message(self, rank: int, kind: str, content: dict[str, Any]) -> None:
        self.messages.append((rank, kind, content))

    def page(self, rank: int, data: dict[str, Any]) -> None:
        self.messages.append((rank, "page", {"data": data}))

    def done(self, rank: int) -> None:
        self.messages.append((rank, "done", {}))

    def refresh(self, status: str) -> None:
        self.statuses.append(status)

    def finish(self) -> None:
        self.finished = self.text(0)

    def text(self, rank: int) -> str:
        parts = []
        for r, kind, content in self.messages:
            if r == rank and kind == "stream":
                parts.append(content["text"])
            elif r == rank and kind == "execute_result":
                parts.append(content["data"]["text/plain"])
        return "".join(parts)


def run(ranks: Cluster, code: str, timeout: float | None = None) -> None:
    """Run a cell that is to end well on all ranks."""
    errors = ranks.execute(code, timeout=timeout).errors
    assert not errors, "\n".join(errors[min(errors)]["traceback"])


def value(ranks: Cluster, expression: str) -> dict[int, object]:
    """What an expression, or the last one of a cell, is on each rank; between two steps."""
    with ranks.between():
        run(ranks, expression)
        return ranks.results()


def pulled(ranks: Cluster, code: str) -> list[object]:
    """The value of `found` on each rank after some code."""
    run(ranks, code, timeout=30)
    found = ranks.pull("found")
    return [found[rank] for rank in range(ranks.size)]


def controller(cluster: Cluster) -> psutil.Process:
    """The process of a cluster's controller."""
    return psutil.Process(int((cluster.info.home / "controller").read_text().split()[0]))


def kill_controller(cluster: Cluster) -> None:
    """Kill the controller, and wait until the cluster knows."""
    controller(cluster).kill()
    until(lambda: not cluster.machinery.controller_running())


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for what another process does, which is no event of this one."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def processes() -> set[int]:
    """Living processes that were started for ranks, by this test run."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        if lives(process.pid):
            found.add(process.pid)
    return found


def lives(pid: int) -> bool:
    """Whether a process runs; one that only its parent has still to notice does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
