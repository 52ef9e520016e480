"""Whom the notebook asks for memory: the ranks of a cluster, or its own process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.memory.answers import MemoryAnswers

Take = Callable[[dict[str, Any]], None]


class Asked(Protocol):
    """Whom a `mlxbench_kernel.remote.memory_feed.MemoryFeed` asks."""

    @property
    def closed(self) -> bool: ...
    def who(self) -> Sequence[tuple[int, str, int]]: ...
    def living(self) -> Sequence[int]: ...
    def why_gone(self, rank: int) -> str: ...
    def how_gone(self, rank: int) -> str: ...
    def hear(self, take: Take | None) -> None: ...
    def ask(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]: ...


class OfRanks:
    """The ranks of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._hearing: tuple[object, Callable[[], None]] | None = None

    @property
    def closed(self) -> bool:
        return self.cluster.client.closed

    def hear(self, take: Take | None) -> None:
        """Have a function called with what ranks send by themselves, on a thread of the client's.

        To be called again and again: a cluster that was started anew has another client.
        """
        client = self.cluster.client
        if self._hearing is not None and (take is None or self._hearing[0] is not client):
            self._hearing[1]()
            self._hearing = None
        if self._hearing is None and take is not None:
            self._hearing = client, client.hear(take)

    def who(self) -> Sequence[tuple[int, str, int]]:
        return [(each.rank, each.host, each.pid) for each in self.cluster.info.ranks]

    def living(self) -> Sequence[int]:
        return self.cluster.living()

    def why_gone(self, rank: int) -> str:
        return self.cluster.why_gone(rank)

    def how_gone(self, rank: int) -> str:
        return self.cluster.how_gone(rank)

    def ask(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]:
        return self.cluster.client.call_each(name, arguments, timeout)


class OfThisProcess:
    """The notebook's own kernel, as if it were rank 0.

    Parameters
    ----------
    namespace, hidden
        As for `mlxbench_kernel.memory.answers.MemoryAnswers`.
    shell
        As for `mlxbench_kernel.memory.in_shell.between_cells`.
    """

    closed = False

    def __init__(
        self, namespace: Mapping[str, Any], hidden: Mapping[str, Any], shell: Any = None
    ) -> None:
        self.answers = MemoryAnswers(namespace, hidden)
        self.shell = shell

    def who(self) -> Sequence[tuple[int, str, int]]:
        return [(0, socket.gethostname(), os.getpid())]

    def living(self) -> Sequence[int]:
        return [0]

    def why_gone(self, rank: int) -> str:
        return ""

    def how_gone(self, rank: int) -> str:
        return ""

    def hear(self, take: Take | None) -> None:
        """It sends nothing by itself: asking it costs next to nothing."""

    def ask(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]:
        return {rank: self.answers.calls[name](**own) for rank, own in arguments.items()}
