"""What ranks tell of their stepper, kept in the notebook: its state, and all that it measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.training.encoding import decode, decode_samples
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.place import Entry
from mlxbench_kernel.training.report import NO_DETAILS

ANSWER_SECONDS = 1.0
STILL_SECONDS = 2.0  # without a step, after which it is said who is late


@dataclass(frozen=True)
class Branch:
    """A course of the run: it left `parent` after step `start`, and has come to step `tip`."""

    name: str
    parent: str
    start: int
    tip: int


@dataclass(frozen=True)
class KeptStep:
    """A state that is kept: `bytes` are what it alone holds."""

    branch: str
    step: int
    bytes: int
    on_disk: bool


@dataclass(frozen=True)
class State:
    """How the stepper of all ranks stands.

    Attributes
    ----------
    step, branch
        Where it is.
    playing, doing
        Whether steps are being taken, and what is being done, in words.
    wanted
        What the last run was to do: until after which step, and until what holds.
    said, stopped, broke
        Why it stopped last, or what went wrong; the kind of it, and the name of the breakpoint
        where it still stands, see `Stop`.
    branches, kept, journal
        All of them.
    budget, used
        Bytes of memory for kept states.
    settings
        What can be changed, with its value; None where it is off.
    frozen, layers
        Paths of layers that are not trained, and of all.
    breakpoints, active
        Conditions by name, and the names of those that are on.
    parameters
        Paths of the parameters that are measured, every `sampling` steps, and compared over the
        ranks, every `comparing` steps; 0 where they are not.
    measured
        What conditions may name.
    """

    step: int = 0
    branch: str = ""
    playing: bool = False
    doing: str = "paused"
    wanted: tuple[int | None, str | None] = (None, None)
    said: str = ""
    stopped: str = ""
    broke: str = ""
    branches: tuple[Branch, ...] = ()
    kept: tuple[KeptStep, ...] = ()
    budget: int = 0
    used: int = 0
    settings: Mapping[str, float | None] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    journal: tuple[Entry, ...] = ()
    breakpoints: Mapping[str, str] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    sampling: int = 0
    comparing: int = 0
    measured: tuple[str, ...] = ()


class Mirror:
    """Asks ranks on the control channel, and keeps what they say.

    Parameters
    ----------
    cluster
        Where they are.

    Attributes
    ----------
    state : State
        As the first of them told it last.
    histories, samples
        By rank.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._polling = threading.Lock()
        self.state = State()
        self.histories: list[History] = []
        self.samples: list[ParameterHistory] = []
        self._cursors: list[list[int]] = []
        self._steppers: list[str] = []  # whose cursors these are
        self._runs: list[str] = []  # of which the histories are
        self._version = -1
        self._teller = -1
        self._moved = time.monotonic()

    @property
    def stands_still(self) -> bool:
        """Whether no step was taken for a while."""
        return time.monotonic() - self._moved > STILL_SECONDS

    def poll(self) -> list[int]:
        """Ask all ranks; those that have no stepper."""
        with self._polling:
            return self._poll()

    def _poll(self) -> list[int]:
        size = self._cluster.size
        while len(self.histories) < size:
            self.histories.append(History())
            self.samples.append(ParameterHistory(()))
            self._cursors.append([0, 0])
            self._steppers.append("")
            self._runs.append("")
        for each in (self.histories, self.samples, self._cursors, self._steppers, self._runs):
            del each[size:]
        # What a rank has to tell before it was given what it lacks is of a run that never was.
        ranks = [rank for rank in self._cluster.living() if rank not in self._cluster.faults.owed]
        while True:
            wanted = {
                rank: {
                    "rows": self._cursors[rank][0],
                    "samples": self._cursors[rank][1],
                    "version": self._version if rank == self._teller else -1,
                    "stepper": self._steppers[rank],
                }
                for rank in ranks
            }
            for rank in ranks[1:]:
                wanted[rank]["version"] = NO_DETAILS  # those of one are enough
            told = self._cluster.client.call_each("stepper", wanted, ANSWER_SECONDS)
            runs = set(self._runs)
            more = [rank for rank, each in sorted(told.items()) if self._take(rank, each, runs)]
            if not more:
                return [rank for rank in ranks if rank not in told]
            ranks = more

    def _take(self, rank: int, answer: dict[str, Any], runs: Collection[str]) -> bool:
        """Keep what a rank has told; whether there is more.

        A rank that was started anew goes on with the run of another one: what it had measured
        itself until then is still here, and stays.
        """
        cursors = self._cursors[rank]
        if answer["run"] not in runs:
            self.histories[rank].clear()
            self.samples[rank].clear()
        self._runs[rank] = answer["run"]
        self._steppers[rank] = answer["stepper"]
        details = answer.get("details")
        if details is not None:
            self._take_details(details)
            self._version, self._teller = answer["version"], rank
        if rank == self._teller:
            if answer["step"] != self.state.step:
                self._moved = time.monotonic()
            light = (
                "step", "branch", "playing", "doing", "said", "stopped", "broke", "budget",
                "used", "sampling", "comparing",
            )  # fmt: skip
            branches = tuple(
                replace(each, tip=answer["tip"]) if each.name == answer["branch"] else each
                for each in self.state.branches
            )
            told = {name: answer[name] for name in light}
            told["wanted"] = tuple(answer["wanted"])
            self.state = replace(self.state, branches=branches, **told)
        rows, taken = decode(answer["rows"]), decode_samples(answer["samples"])
        history, samples = self.histories[rank], self.samples[rank]
        of_another = answer["received"]
        add = history.add_missing if of_another[0] else history.append
        for branch, record in rows:
            add(branch, record)
        add_sample = samples.add_missing if of_another[1] else samples.append
        for branch, step, values in taken:
            add_sample(branch, step, values)
        before = list(cursors)
        cursors[:] = [answer["next_rows"], answer["next_samples"]]
        return cursors != before and (len(rows) > 1000 or any(of_another))

    def _take_details(self, details: dict[str, Any]) -> None:
        branches = tuple(Branch(*each) for each in details["branches"])
        names = {each.name for each in branches}
        before = {each.name: each.start for each in self.state.branches}
        # One that begins elsewhere now is another one: a checkpoint was loaded.
        moved = {each.name for each in branches if before.get(each.name, each.start) != each.start}
        for gone in (before.keys() - names) | moved:
            for history, samples in zip(self.histories, self.samples, strict=True):
                history.drop(gone)
                samples.drop(gone)
        if tuple(details["parameters"]) != self.state.parameters:  # another model
            self.samples[:] = [ParameterHistory(details["parameters"]) for _ in self.samples]
        for each in branches:  # after a reset, or a fault, or of another stepper
            for history, samples in zip(self.histories, self.samples, strict=True):
                if history.last(each.name).get("step", 0) > each.tip:
                    history.truncate(each.name, each.tip)
                    samples.truncate(each.name, each.tip)
        self.state = State(
            **{
                **vars(self.state),
                "branches": branches,
                "kept": tuple(KeptStep(*each) for each in details["kept"]),
                "journal": tuple(Entry(*each) for each in details["journal"]),
                "settings": details["settings"],
                "breakpoints": details["breakpoints"],
                **{
                    name: tuple(details[name])
                    for name in ("frozen", "layers", "parameters", "measured", "active")
                },
            }
        )
