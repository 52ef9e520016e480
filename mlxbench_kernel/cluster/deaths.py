"""Why a rank is gone: how its process ended, and what was last seen of its memory.

A process that ran out of memory is killed by the system with SIGKILL, as by anybody else, and
says nothing. So it takes more to say that it died of memory: the system's own count of such
kills has risen (Linux's control groups), or the last sample shows that hardly anything was left.
macOS's jetsam sends SIGKILL too, and counts nowhere.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbench_kernel.cluster.state import RankInfo
from mlxbench_kernel.memory import format_bytes
from mlxbench_kernel.rank import last_seen
from mlxbench_kernel.units import duration

# `memory.overflow` has the source; a fault of any other native code ends like that too.
REFUSED = (
    "MLX on the CPU ends like this, without an error, when the system refuses an array its memory: "
    "was one asked for that is larger than what is left?"
)
TIGHT = 0.05  # of the pool: with no more than that left, the next large array is too much
OLD_SECONDS = 10.0  # a sample from before that says nothing of the moment of death


@dataclass(frozen=True)
class Death:
    """The end of a rank's process.

    Attributes
    ----------
    code
        Exit status, or the negative number of the signal (as `subprocess.Popen.returncode`);
        None where it is not known.
    seen
        `last_seen.report` of its host, or a sample taken by the notebook (`Cluster.status`);
        None without any.
    """

    code: int | None = None
    seen: Mapping[str, Any] | None = None

    @classmethod
    def here(cls, code: int | None, folder: str) -> Death:
        """Of a rank on this machine, with the record in its folder."""
        return cls(code, last_seen.report(Path(folder)))

    @property
    def how(self) -> str:
        """How the process ended, in words; "" where that is not known."""
        if self.code is None:
            return ""
        if self.code >= 0:
            return f"exit status {self.code}"
        try:
            return f"killed by {signal.Signals(-self.code).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {-self.code}"

    @property
    def briefly(self) -> str:
        """`how`, and whether it was for want of memory; "" where neither is known."""
        want = "for want of memory" if self.of_memory else ""
        return ", ".join(each for each in (want, self.how) if each)

    @property
    def of_memory(self) -> bool:
        """Whether it died of memory, as far as that can be told."""
        if self.code not in (None, -signal.SIGKILL) or self.seen is None:
            return False
        return self.counted or self.tight

    @property
    def counted(self) -> bool:
        """Whether the system says that it killed for memory since the last sample."""
        return bool(self.seen and self.seen.get("killed", 0) > 0)

    @property
    def tight(self) -> bool:
        """Whether hardly any memory was left just before."""
        if self.seen is None or self.seen["age"] > OLD_SECONDS:
            return False
        memory = self.seen["memory"]
        pool = self._pool
        near_limit = (
            memory["limit"] is not None and memory["active"] > (1 - TIGHT) * memory["limit"]
        )
        return bool(pool["available"] < TIGHT * pool["total"] or near_limit)

    @property
    def _pool(self) -> Mapping[str, int]:
        """The host's memory: what a process is killed for, also where a GPU has its own."""
        seen = self.seen or {}
        pool: Mapping[str, int] = seen.get("host", seen["memory"])
        return pool

    def message(self, who: RankInfo, alone: bool = False) -> str:
        """What a person is told: one line with the next thing to type, then what was last seen.

        Parameters
        ----------
        who
            The rank.
        alone
            Whether no other rank is left to heal it from.
        """
        rank = f"rank {who.rank} on {who.host}"
        healing = "no rank is left: %mlx_dist restart starts all anew, without variables"
        next_step = healing if alone else "%mlx_dist heal brings it back"
        next_step += f" (%mlx_dist log --ranks {who.rank})"
        if not self.of_memory:
            how = f", {self.how}" if self.how else ""
            first = f"{rank} is gone (process {who.pid}{how}): {next_step}"
        elif self.code is None:
            first = f"{rank} is gone, likely for want of memory{self._why}: {next_step}"
        else:
            first = f"{rank} died of memory, {self.how}{self._why}: {next_step}"
        return "\n".join([first, *self._last_words()])

    @property
    def _why(self) -> str:
        pool = self._pool
        left = f"{format_bytes(pool['available'])} of {format_bytes(pool['total'])}"
        if self.tight:
            return f" while {left} were left there"
        return " as the system reports of its control group"

    def _last_words(self) -> list[str]:
        if self.seen is None:
            return []
        refused = [REFUSED] if self.code == -signal.SIGSEGV else []
        memory = self.seen["memory"]
        amounts = [
            f"footprint {format_bytes(memory['footprint'])}",
            f"MLX active {format_bytes(memory['active'])}",
            f"cache {format_bytes(memory['cache'])}",
            f"{format_bytes(self._pool['available'])} of {format_bytes(self._pool['total'])} left",
        ]
        lines = [f"last seen {duration(self.seen['age'])} before: {', '.join(amounts)}"]
        if held := self.seen["largest"]:
            largest = [
                f"{each['name']} {format_bytes(each['bytes'])} {each['kind']}" for each in held
            ]
            lines.append(f"largest: {', '.join(largest)}")
        return [*refused, *lines]
