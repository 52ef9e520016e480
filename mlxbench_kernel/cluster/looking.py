"""What can be seen of ranks, also while they are busy; the part of `Cluster` that asks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxbench_kernel.cluster import words
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.deaths import Death
from mlxbench_kernel.cluster.history import PastCell, ask, ask_last_cell
from mlxbench_kernel.cluster.machinery import Machinery
from mlxbench_kernel.cluster.state import SILENT, ClusterInfo, RankInfo
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.memory import MemorySample

ANSWER_SECONDS = 2.0
SILENT_SECONDS = 1.0  # after which a rank that is asked what it does is called silent
DEATH_SECONDS = 0.8  # that the host of a rank that died may take to say how


class Looking:
    """Asks ranks on the control channel, which answers also while a cell blocks.

    Parameters
    ----------
    info, machinery, client
        Of the cluster.
    """

    def __init__(self, info: ClusterInfo, machinery: Machinery, client: BenchClient) -> None:
        self.info = info
        self.client = client
        self.machinery = machinery
        self._samples: dict[int, tuple[float, Mapping[str, Any]]] = {}
        client.engines = list(info.engines)

    @property
    def id(self) -> str:
        """Name of the cluster, unique on this machine."""
        return self.info.id

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.info.size

    @property
    def controller_runs(self) -> bool:
        """Whether ipyparallel's controller is there."""
        return not self.client.closed and self.machinery.controller_running()

    def living(self) -> list[int]:
        """The ranks whose processes are there, as far as the controller knows."""
        return sorted(self.client.living() & set(range(self.size)))

    def choose(self, ranks: Iterable[int] | None) -> list[int]:
        """The ranks, checked and in order; all of them for None."""
        if ranks is None:
            return list(range(self.size))
        chosen = sorted(set(ranks))
        for rank in chosen:
            if not 0 <= rank < self.size:
                raise UsageError(f"there is no rank {rank}: ranks are 0 to {self.size - 1}")
        return chosen

    def _require(self, ranks: Sequence[int]) -> None:
        self._require_controller()
        gone = sorted(set(ranks) - self.client.living())
        if gone:
            raise ClusterError(self.why_gone(gone[0]))

    def why_gone(self, rank: int) -> str:
        """Why a rank is gone, with what was last seen of its memory; see `Death.message`."""
        return self._death(rank).message(self.info.ranks[rank], alone=not self.living())

    def how_gone(self, rank: int) -> str:
        """How the process of a rank has ended, in a few words; see `Death.briefly`."""
        return self._death(rank).briefly

    def _death(self, rank: int) -> Death:
        who = self.info.ranks[rank]
        death = self.machinery.death(self.client.engine(rank), who.pid, DEATH_SECONDS)
        if death.seen is None and rank in self._samples:
            when, sample = self._samples[rank]
            seen = {**sample, "age": time.monotonic() - when}
            death = dataclasses.replace(death, seen=seen)
        return death

    def _require_controller(self) -> None:
        if self.client.closed and not self.info.home.exists():
            raise ClusterError(f"cluster {self.id} is down: type %mlx_dist up")
        if not self.controller_runs:
            raise ClusterError(
                f"the controller of cluster {self.id} is gone; the ranks go on and keep their "
                "variables: %mlx_dist heal brings it back"
            )

    def status(self) -> list[RankInfo]:
        """All ranks with their memory and what they are doing, also while a cell runs."""
        self._require_controller()
        samples = self._ask_for_samples(range(self.size))
        living = self.client.living()
        ranks = []
        for info in self.info.ranks:
            sample = samples.get(info.rank)
            if sample is None:
                state = self._unheard(info.rank, living)
                ranks.append(dataclasses.replace(info, state=state))
            else:
                memory = MemorySample(**sample["memory"])
                ranks.append(dataclasses.replace(info, memory=memory, state=_doing(sample)))
        return ranks

    def free_memory(self) -> dict[str, tuple[int, int]]:
        """By host the bytes that are free there now, and how many ranks share them, as `FitPlan`
        takes them.

        Where ranks of a host draw from different pools (GPUs with memory of their own, containers)
        each pool has a name, as ``"box, rank 1"``. Of a unified pool it is at most what is left of
        what the GPU may have.

        Raises
        ------
        ClusterError
            A rank does not answer.
        """
        there = self.status()
        limits = self.client.call("memory_limits", range(self.size), ANSWER_SECONDS)
        sharing: dict[tuple[Any, ...], list[tuple[int, MemorySample]]] = {}
        for each in there:
            if each.memory is None or each.rank not in limits:
                raise ClusterError(f"rank {each.rank} on {each.host} does not answer: {each.state}")
            own = limits[each.rank]["pools"][0]  # what arrays are in stands first
            sharing.setdefault((each.host, *own), []).append((each.rank, each.memory))
        hosts = [host for host, *_ in sharing]
        found: dict[str, tuple[int, int]] = {}
        for (host, *_), ranks in sharing.items():
            free = min(memory.available for _, memory in ranks)
            caps = [cap for rank, _ in ranks if (cap := limits[rank]["cap"]) is not None]
            if caps:
                free = min(free, max(0, min(caps) - sum(memory.active for _, memory in ranks)))
            which = ", ".join(str(rank) for rank, _ in ranks)
            several = f", rank{'s'[: len(ranks) > 1]} {which}"
            found[host if hosts.count(host) == 1 else host + several] = free, len(ranks)
        return found

    def doing(self, ranks: Sequence[int]) -> dict[int, str]:
        """What ranks are doing; those that do not answer are "silent", or "gone"."""
        self._require_controller()
        samples = self._ask_for_samples(ranks, SILENT_SECONDS)
        living = self.client.living()
        missing = {rank: self._unheard(rank, living) for rank in ranks}
        return missing | {rank: _doing(sample) for rank, sample in samples.items()}

    def _unheard(self, rank: int, living: set[int]) -> str:
        """State of a rank that does not answer."""
        if rank not in living:
            return "gone"
        host = self.machinery.host(self.client.engine(rank))
        return f"{SILENT} {self.client.silence(rank):.0f} s ({host})"

    def _ask_for_samples(
        self, ranks: Sequence[int], timeout: float = ANSWER_SECONDS
    ) -> dict[int, Any]:
        """Samples of the ranks that answer; the last ones are kept, for `why_gone`."""
        samples = self.client.call("sample", ranks, timeout)
        now = time.monotonic()
        self._samples.update({rank: (now, sample) for rank, sample in samples.items()})
        return samples

    def complete(self, code: str, cursor: int, timeout: float = 0.5) -> tuple[int, list[str]]:
        """Completions in the namespace of rank 0.

        Returns
        -------
        start, matches
            The matches replace ``code[start:cursor]``.
        """
        answer = self.client.call("complete", [0], timeout, code=code, cursor=cursor).get(0)
        return (answer["start"], answer["matches"]) if answer else (cursor, [])

    def logs(self, ranks: Iterable[int] | None = None, lines: int = 40) -> dict[int, str]:
        """The last lines that the processes of ranks wrote outside of cells."""
        return {
            rank: self.machinery.rank_log(self.client.engine(rank), lines)
            for rank in self.choose(ranks)
        }

    def collectives(self, ranks: Iterable[int] | None = None) -> dict[int, list[dict[str, Any]]]:
        """The last collectives of ranks, also while they are blocked; see `Collectives.log`."""
        self._require_controller()
        return self.client.call("collectives", self.choose(ranks), ANSWER_SECONDS)

    def history(self, ranks: Iterable[int] | None = None) -> dict[int, list[PastCell]]:
        """What the last cells of ranks put out, also those of another notebook; oldest first."""
        self._require_controller()
        return ask(self.client, self.choose(ranks))

    def last_cell(self) -> dict[int, PastCell]:
        """The last cell that any rank ran, by the ranks it ran on; empty where none did."""
        self._require_controller()
        return ask_last_cell(self.client, range(self.size))


def _doing(sample: Mapping[str, Any]) -> str:
    waits = words.waiting(sample)
    return words.doing(sample) + (f" · {waits}" if waits else "")
