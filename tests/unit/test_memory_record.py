"""What a process keeps of its memory over time."""

from __future__ import annotations

import math
import threading

import mlx.core as mx
import numpy as np
import pytest

from mlxbench_kernel.memory import record
from mlxbench_kernel.memory.record import COLUMNS, Record, Ring, decode, read_marks


def column(samples: record.Samples, name: str) -> list[float]:
    return samples[:, COLUMNS.index(name)].tolist()


def test_a_ring_keeps_the_last_rows_whatever_comes_at_once() -> None:
    ring = Ring(columns=1, most=3000)
    for first in range(0, 7000, 700):
        ring.put(np.arange(first, first + 700, dtype=float)[:, None])
    end, rows = ring.since(0)
    assert end == ring.taken == 7000
    assert rows[:, 0].tolist() == list(range(4000, 7000))
    ring.put(np.arange(7000, 12_000, dtype=float)[:, None])
    one = Ring(columns=1, most=3000)
    for number in range(5000):
        one.append([number])
    assert one.since(0)[1][:, 0].tolist() == list(range(2000, 5000))
    end, rows = ring.since(11_990, most=4)
    assert end == 11_994 and rows[:, 0].tolist() == [11_990, 11_991, 11_992, 11_993]
    assert ring.last is not None and ring.last.tolist() == [11_999]


def test_a_sample_has_what_mlx_and_the_system_say() -> None:
    array = mx.ones((1000, 1000))
    mx.eval(array)
    sample = dict(zip(COLUMNS, record.look(step=3), strict=True))
    assert sample["active"] == mx.get_active_memory() and sample["cache"] == mx.get_cache_memory()
    assert sample["peak"] == mx.get_peak_memory()
    assert sample["footprint"] > 4_000_000
    assert 0 < sample["available"] < sample["total"]
    assert sample["step"] == 3 and math.isnan(sample["cell"])
    if not mx.is_available(mx.gpu):
        assert math.isnan(sample["gpu_total"]), "not known is no zero"


def test_cells_and_marks_last_until_the_next_one() -> None:
    kept = Record()
    kept.begin_cell("Cell In[1]")
    kept.mark("warm-up")
    kept.take()
    kept.end_cell()
    kept.take()
    kept.begin_cell("Cell In[2]")
    kept.mark("")
    told = kept.tell()
    marks = read_marks(told["marks"])
    assert [(mark.kind, mark.name) for mark in marks] == [
        ("cell", "Cell In[1]"), ("mark", "warm-up"), ("cell", "Cell In[2]"),
    ]  # fmt: skip
    assert marks[0].end <= marks[2].begin and marks[1].end <= marks[2].begin + 1
    assert math.isnan(marks[2].end)
    cells = column(decode(told["samples"]), "cell")
    assert cells[0] == 0 and math.isnan(cells[1]) and cells[2] == 2


def test_who_asks_again_gets_only_what_is_new() -> None:
    kept = Record()
    for _ in range(5):
        kept.take()
    told = kept.tell()
    known = told["next"], told["version"], told["record"]
    assert known[0] >= 5 and not told["more"] and told["marks"] == []
    again = kept.tell(since=known[0], version=known[1], record=known[2])
    assert "marks" not in again and again["next"] >= known[0]
    assert len(decode(again["samples"])) == again["next"] - known[0]
    other = kept.tell(since=known[0], version=known[1], record="of a process that is gone")
    assert len(decode(other["samples"])) >= 5 and "marks" in other


def test_an_hour_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PART", 100)
    kept = Record()
    for _ in range(250):
        kept.take()
    cursor, found, identity = 0, 0, kept.identity
    while True:
        told = kept.tell(since=cursor, record=identity)
        found += len(decode(told["samples"]))
        cursor = told["next"]
        if not told["more"]:
            break
    assert found == cursor >= 250


def test_sampling_goes_on_by_itself_once_somebody_asked() -> None:
    kept = Record()
    kept.step = lambda: 7
    assert kept.ring.taken == 0
    kept.tell(period=0.1)
    came = threading.Event()
    take = kept.take

    def taken() -> None:
        take()
        if kept.ring.taken >= 4:
            came.set()

    kept.take = taken  # type: ignore[method-assign]
    assert came.wait(20)
    _, rows = kept.ring.since(0)
    assert column(rows, "step") == [7.0] * len(rows)
    assert np.diff(column(rows, "time")).min() > 0.02
