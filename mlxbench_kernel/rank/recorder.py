"""Keeps what is to be known of a rank after it died: its last sample, see `last_seen`."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from mlxbench_kernel.rank import last_seen

PERIOD = 0.2  # seconds between two samples while a cell runs
REST = 1.0  # seconds after the end of a cell, when the last one is taken
WALK_SECONDS = 1.0  # between two walks through the variables
SHARE = 400  # a walk is followed by that many times what it took without one
JUMP = 0.02  # of all memory: a growth that calls for a walk at once
TIGHT = 0.1  # of all memory: with no more than that left, small growth counts as well


class Recorder:
    """Looks at memory and variables in a thread of its own, only while there is something to see.

    Parameters
    ----------
    shell
        The shell of the rank.
    folder
        Private folder of the rank; None keeps the record in this process only.

    Attributes
    ----------
    largest : list of dict
        The largest variables as last seen (`holdings.Held` as dicts).
    """

    def __init__(self, shell: InteractiveShell, folder: Path | None) -> None:
        self.largest: list[dict[str, Any]] = []
        self._shell = shell
        self._folder = folder
        self._writer: last_seen.Writer | None = None
        self._began = threading.Event()
        self._busy = False
        self._walked = self._walk_cost = 0.0
        self._footprint = 0  # at the last walk
        shell.events.register("pre_run_cell", self._begin)
        shell.events.register("post_run_cell", self._end)
        threading.Thread(target=self._run, daemon=True, name="mlxbench-recorder").start()

    def _begin(self, info: Any) -> None:
        self._busy = True
        if not self._began.is_set():
            self._began.set()

    def _end(self, result: Any) -> None:
        self._busy = False

    def _run(self) -> None:
        self._began.wait()
        self._open()
        self.look()  # what the system's counts say before anything happened
        while True:
            self._began.wait()
            rested = 0.0
            while rested < REST:
                time.sleep(PERIOD)
                if self._busy:
                    rested = 0.0
                    self.look()
                else:
                    rested += PERIOD
            self._began.clear()
            if self._busy:  # a cell began just before that
                self._began.set()
            self.look(walk=True)

    def _open(self) -> None:
        if self._folder is not None:
            try:
                self._writer = last_seen.Writer(self._folder)
            except OSError:  # a full disk takes nothing from the rank but its last words
                pass

    def look(self, walk: bool = False) -> None:
        """Take a sample; with a walk through the variables where it is time for one, or asked."""
        from mlxbench_kernel import memory

        sample = memory.sample()
        if walk or self._due(sample):
            self._walk(sample)
        if self._writer is None:
            return
        total, available = memory.host_pool()
        record = {
            "time": time.time(),
            "memory": dataclasses.asdict(sample),
            "host": {"total": total, "available": available},
            "oom_kills": memory.oom_kills(),
            "largest": self.largest,
        }
        try:
            self._writer.write(record)
        except OSError:
            self._writer.close()
            self._writer = None

    def _due(self, sample: Any) -> bool:
        since = time.monotonic() - self._walked
        if since < SHARE * self._walk_cost:
            return False
        scarce = sample.available < TIGHT * sample.total
        jump = JUMP * sample.total * (0.1 if scarce else 1.0)
        return since > WALK_SECONDS or sample.footprint - self._footprint > jump

    def _walk(self, sample: Any) -> None:
        from mlxbench_kernel.rank import holdings

        started, used = time.monotonic(), time.thread_time()
        namespace, hidden = self._shell.user_ns, self._shell.user_ns_hidden
        found = holdings.largest(namespace, hidden)
        self.largest = [dataclasses.asdict(held) for held in found]
        self._walked, self._footprint = started, sample.footprint
        self._walk_cost = time.thread_time() - used
