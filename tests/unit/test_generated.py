"""What ranks say of a generation while it goes on, and what a notebook makes of it."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from mlxbench_kernel.models.generating import Piece
from mlxbench_kernel.remote import on_model
from mlxbench_kernel.remote.generated import Generated, SoFar
from mlxbench_kernel.widgets.generated import figures_line


def test_a_share_of_time_that_nobody_knows_goes_through_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Collectives of NCCL run on the GPU, and no log has their ends."""
    said: list[Any] = []

    def say(**told: Any) -> None:
        said.append(json.loads(json.dumps(told, allow_nan=False)))

    monkeypatch.setattr(on_model, "say", say)
    figures = {"kv_bytes": 1000, "active": 2000, "peak": 3000, "collectives": math.nan}
    made: Any = SimpleNamespace(watch=SimpleNamespace(figures=lambda: dict(figures)))
    told = on_model._Told(made, True)
    told(Piece("a", 1, 1, 3, 0, False, 0.1, 0.0))
    assert math.isnan(told.last()["figures"]["collectives"])
    heard: list[Generated] = []
    so_far = SoFar(heard.append)
    for each in said:
        for rank in (0, 1):
            so_far(rank, each)
    assert all(math.isnan(each["collectives"]) for each in heard[-1].ranks.values())
    line = figures_line(heard[-1])
    assert "KV cache 1" in line and "in collectives" not in line


def test_reading_a_long_prompt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(on_model, "say", lambda **told: said.append(told))
    monkeypatch.setattr(on_model, "FIGURES_SECONDS", 0.0)
    for speaks in (False, True):
        reading = on_model._Reading(speaks)
        for read in (0, 2048, 4096):
            reading(read, 4096)
    assert said == [{"read": 0, "all": 4096}, {"read": 2048, "all": 4096}]
    heard: list[Generated] = []
    so_far = SoFar(heard.append)
    for each in said:
        so_far(0, each)
    assert figures_line(heard[-1]) == "reading the prompt: 2,048 of 4,096 tokens"
