"""Measures a rank's part of a language model for the notebook; this runs on the rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxbench_kernel.models import measuring
from mlxbench_kernel.remote.on_model import part_named
from mlxbench_kernel.remote.said import say


def on_benchmark(name: str, *arguments: Any) -> Any:
    """Do one of `CALLS`; what it returned."""
    return CALLS[name](*arguments)


def _runs(name: str, prompt: int, generate: int, repeat: int, batch: int) -> None:
    """Say what each run of `measuring.runs` gives, the one that does not count included."""
    for figures in measuring.runs(part_named(name), prompt, generate, repeat, batch):
        say(run=figures)


def _check(name: str, prompt: int, generate: int, repeat: int, batch: int) -> None:
    measuring.check(part_named(name), prompt, generate, repeat, batch)


CALLS: dict[str, Callable[..., Any]] = {
    "runs": _runs,
    "check": _check,
    "machine": measuring.machine,
}
