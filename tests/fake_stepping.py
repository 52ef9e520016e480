"""A stepper without ranks, for the dashboard: it makes up its figures."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import captured, first_nonfinite
from mlxbench_kernel.remote.mirror import Branch, State
from mlxbench_kernel.training.history import History, ParameterHistory
from mlxbench_kernel.training.origin import StepGraph
from mlxbench_kernel.training.place import Entry

LAYERS = ("embedding", *(f"layers.{n}.{part}" for n in range(6) for part in ("attention", "mlp")))
PARAMETERS = tuple(f"{layer}.{name}" for layer in LAYERS for name in ("weight", "bias"))
BREAKPOINTS = {
    "nonfinite": "nonfinite > 0 or not finite(loss)",
    "spike": "spike(loss, 3)",
    "plateau": "plateau(loss, 500)",
}


class FakeStepping:
    """Steps at once, and plays so many steps a second."""

    def __init__(self, size: int = 2, rate: float = 20, sampling: int = 10) -> None:
        self.size, self.rate = size, rate
        self.state = State(
            branch="main",
            branches=(Branch("main", "", 0, 0),),
            budget=4_000_000_000,
            settings={"learning_rate": 0.001, "weight_decay": 0.01, "clip": 1.0},
            layers=LAYERS,
            breakpoints=dict(BREAKPOINTS),
            active=("nonfinite",),
            parameters=PARAMETERS,
            sampling=sampling,
            comparing=50,
            measured=("step", "loss", "learning_rate", "grad_norm", "seconds"),
        )
        self.histories = [History() for _ in range(size)]
        self.samples = [ParameterHistory(PARAMETERS) for _ in range(size)]
        self.asked: list[str] = []
        self.held: threading.Event | None = None  # commands wait for it
        self._watchers: list[Callable[[], None]] = []
        self._random = np.random.default_rng(1)
        self._player: threading.Thread | None = None

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(changed)
        return lambda: self._watchers.remove(changed)

    def change(self, **values: object) -> None:
        self.state = replace(self.state, **values)  # type: ignore[arg-type]
        for watcher in list(self._watchers):
            watcher()

    def take(self, steps: int) -> None:
        """Steps that are made up, without telling anybody."""
        state = self.state
        rate = state.settings["learning_rate"]
        for step in range(state.step + 1, state.step + steps + 1):
            noise = self._random.normal(size=(self.size, 4))
            loss = 3 * math.exp(-step * rate) + 0.3 + 0.05 * noise[0, 0]
            for rank in range(self.size):
                compute = 0.02 + 0.01 * rank + 0.001 * abs(noise[rank, 1])
                parts = {"data_seconds": 0.004, "compute_seconds": compute}
                parts["collective_seconds"] = 0.03 + 0.01 * self.size - compute
                record = {
                    "step": step, "loss": loss, "learning_rate": rate, "seconds": 0.05,
                    "grad_norm": 1 + abs(noise[0, 2]), "tokens_per_second": 20_480.0, **parts,
                }  # fmt: skip
                self.histories[rank].append(state.branch, record)
                if step % state.sampling == 0:
                    self.samples[rank].append(state.branch, step, self._sample(step))
        now = state.step + steps
        tips = tuple(
            replace(each, tip=now) if each.name == state.branch else each for each in state.branches
        )
        self.state = replace(self.state, step=now, branches=tips)

    def _sample(self, step: int) -> dict[str, NDArray[np.float32]]:
        norms = np.exp(self._random.normal(size=len(PARAMETERS)) - np.arange(len(PARAMETERS)) / 8)
        bad = np.zeros(len(PARAMETERS))
        if step % 50 == 0:
            bad[7], norms[7] = 3, np.nan
        return {
            "grad_norm": norms.astype(np.float32),
            "grad_norm_rank": norms.astype(np.float32),
            "update_ratio": (norms / 1000).astype(np.float32),
            "nonfinite": bad.astype(np.float32),
        }

    def _command(self, text: str) -> None:
        self.asked.append(text)
        if self.held is not None:
            self.held.wait(30)
        entry = Entry(self.state.step, self.state.branch, text, time.time())
        self.state = replace(self.state, journal=(*self.state.journal, entry))

    def step(self, n: int = 1) -> None:
        self._command(f"step {n}")
        self.take(n)
        self.change()

    def run(self, n: int) -> None:
        self._command(f"run {n}")
        self.take(n)
        self.change(said=f"{n} steps are done")

    def play(self) -> None:
        self._command("play")
        self.change(playing=True, doing="playing", said="")
        self._player = threading.Thread(target=self._play, daemon=True)
        self._player.start()

    def _play(self) -> None:
        while self.state.playing:
            self.take(1)
            self.change()
            time.sleep(1 / self.rate)

    def pause(self) -> None:
        self._command("pause")
        self.change(playing=False, doing="paused")
        if self._player is not None:
            self._player.join()

    def until(self, text: str) -> None:
        if "losss" in text:
            raise UsageError("losss is not measured: did you mean loss? (measured: loss, step)")
        self._command(f"until {text}")
        self.take(30)
        self.change(said=f"{text} holds")

    def back(self, n: int = 1) -> None:
        self.to(self.state.step - n)

    def to(self, step: int) -> None:
        if step < 0:
            raise UsageError("nothing is kept before step 0: kept are steps 0 to 40\nmore")
        self._command(f"to {step}")
        for kept in (*self.histories, *self.samples):
            kept.truncate(self.state.branch, step)
        self.change(step=step)

    def reset(self) -> None:
        self.to(0)

    def branch(self, name: str = "", at: int | None = None) -> None:
        name = name or f"branch {len(self.state.branches)}"
        start = self.state.step if at is None else at
        self._command(f"branch {name} at {start}")
        new = Branch(name, self.state.branch, start, start)
        self.change(branches=(*self.state.branches, new), branch=name, step=start)

    def switch(self, name: str) -> None:
        self._command(f"switch {name}")
        tip = next(each.tip for each in self.state.branches if each.name == name)
        self.change(branch=name, step=tip)

    def delete(self, name: str) -> None:
        self._command(f"delete {name}")
        for kept in (*self.histories, *self.samples):
            kept.drop(name)
        self.change(branches=tuple(each for each in self.state.branches if each.name != name))

    def compare(self, a: str, b: str) -> list[tuple[str, float]]:
        self._command(f"compare {a} {b}")
        return [(name, 0.01 * number) for number, name in enumerate(PARAMETERS)]

    def set(self, **values: float) -> None:
        if values.get("learning_rate", 0) < 0:
            raise UsageError("learning_rate is to be -1: it cannot be negative")
        self._command(f"set {values}")
        self.change(settings={**self.state.settings, **values})

    def freeze(self, path: str) -> None:
        self._command(f"freeze {path}")
        self.change(frozen=(*self.state.frozen, path))

    def unfreeze(self, path: str) -> None:
        self._command(f"unfreeze {path}")
        self.change(frozen=tuple(each for each in self.state.frozen if each != path))

    def break_at(self, what: str) -> None:
        if what.endswith("<"):
            raise UsageError(f"{what} ends too early: type a number after <")
        self._command(f"break at {what}")
        known = {**self.state.breakpoints}
        known.setdefault(what, what)
        self.change(breakpoints=known, active=(*self.state.active, what))

    def no_break(self, what: str) -> None:
        self._command(f"no break {what}")
        self.change(active=tuple(each for each in self.state.active if each != what))

    def keep(self, budget_bytes: int) -> None:
        self._command(f"keep {budget_bytes}")
        self.change(budget=budget_bytes)

    def equalize(self, rank: int) -> None:
        self._command(f"equalize {rank}")
        self.change(said="")

    def save(self, path: str) -> None:
        self._command(f"save {path}")
        self.change()

    def load(self, path: str) -> None:
        self._command(f"load {path}")
        self.change()

    def restart_batches(self) -> None:
        self._command("restart batches")
        self.change(said="")

    def graph(self) -> StepGraph:
        self._command("graph")
        x = mx.array([1.0, -1.0])
        got = captured(lambda: mx.log(x).sum() + mx.exp(x).sum())
        bad = first_nonfinite(got.outputs, got.graph)
        assert bad is not None
        return StepGraph(self.state.step, 1, got.graph, bad.node, f"it begins with rank 1: {bad}")

    def script(self) -> str:
        return "stepper.step(3)\nstepper.set(learning_rate=0.1)"
