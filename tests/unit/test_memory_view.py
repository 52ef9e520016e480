"""The view of memory and ``%mlx_mem``, over ranks that make up their figures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fake_memory import GB, FakeRanks
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from ipywidgets.widgets.widget import _instances
from pressing import press, wait

from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.kernel.extension import load_ipython_extension, unload_ipython_extension
from mlxbench_kernel.memory import attribute
from mlxbench_kernel.memory.record import COLUMNS, Mark
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.widgets import memory as memory_widgets
from mlxbench_kernel.widgets.memory import MemoryView
from mlxbench_kernel.widgets.memory_holdings import boxes
from mlxbench_kernel.widgets.memory_live import MemoryLive
from mlxbench_kernel.widgets.memory_report import POINTS, figure_of, thinned

NAN = float("nan")


@pytest.fixture
def asked() -> FakeRanks:
    asked = FakeRanks()
    names = {"model": nn.Sequential(nn.Linear(100, 100)), "spare": mx.ones((1000, 1000))}
    mx.eval(names["model"].parameters(), names["spare"])
    for rank in (0, 1):
        asked.holdings[rank] = attribute(names).to_dict()
    return asked


@pytest.fixture
def memory(asked: FakeRanks) -> Iterator[Memory]:
    memory = Memory(asked)
    yield memory
    memory.close()


@pytest.fixture
def view(memory: Memory) -> Iterator[MemoryView]:
    before = set(_instances)
    view = MemoryView(memory)
    yield view
    view.close()
    left = [_instances[each] for each in set(_instances) - before]
    assert not [each for each in left if isinstance(each, MemoryLive)], "it is left behind"


def test_it_shows_pools_and_ranks_in_json_that_browsers_take(view: MemoryView) -> None:
    wait(lambda: view.live.bars)
    text = json.dumps([view.live.bars, view.live.ranks], allow_nan=False)
    (bar,) = json.loads(text)[0]
    assert bar["host"] == "studio" and bar["pressure"] == "warn"
    assert {each["name"] for each in bar["markers"]} >= {"GPU cap", "peak of rank 1"}
    assert "rank 0 2.00 GB" in repr(view)


def test_a_browser_gets_all_there_is_and_then_what_is_new(memory: Memory) -> None:
    live = MemoryLive(memory.feed, memory.markers)
    sent: list[tuple[dict[str, Any], list[bytes]]] = []
    live.send = lambda content, buffers=None: sent.append((content, buffers or []))
    wait(lambda: memory.feed.ranks[0].ring.taken > 3)
    live.draw()
    first = next(content for content, _ in sent if content["kind"] == "samples")
    assert [part["first"] for part in first["parts"]] == [0, 0]
    rows = np.frombuffer(next(b for c, b in sent if c["kind"] == "samples")[0]).reshape(-1, 6)
    assert rows[0, 1] == 2 * GB and abs(rows[0, 0] - time.time()) < 60
    known = first["parts"][0]["first"] + len(rows)
    sent.clear()
    wait(lambda: memory.feed.ranks[0].ring.taken > known)
    live.draw()
    more = next(content for content, _ in sent if content["kind"] == "samples")
    assert more["parts"][0]["first"] == known
    sent.clear()
    live._handle_custom_msg({"kind": "ready"}, [])  # another page was opened
    live.draw()
    assert next(c for c, _ in sent if c["kind"] == "samples")["parts"][0]["first"] == 0
    assert [c["rank"] for c, _ in sent if c["kind"] == "marks"] == [0, 1]


def test_nobody_watches_for_a_page_that_was_closed(view: MemoryView, memory: Memory) -> None:
    sent: list[dict[str, Any]] = []
    view.live.send = lambda content, buffers=None: sent.append(content)
    assert memory.feed.watched
    view.live._handle_custom_msg({"kind": "gone"}, [])
    assert not memory.feed.watched and {"kind": "who"} in sent
    view.live._handle_custom_msg({"kind": "here"}, [])  # another one that shows it
    assert memory.feed.watched
    sent.clear()
    wait(lambda: [each for each in sent if each["kind"] == "samples"])
    view.close()
    view.live._handle_custom_msg({"kind": "here"}, [])
    assert not memory.feed.watched


def test_a_view_that_nobody_keeps_up_any_more_says_so(view: MemoryView, memory: Memory) -> None:
    wait(lambda: view.live.bars)
    assert view.growth.value == ""
    memory.feed.close()  # as where its cluster is down, or the last view that was shown was closed
    wait(lambda: "type %mlx_mem for one that goes on" in view.growth.value)


def test_what_holds_it_is_drawn_and_what_would_free_most(view: MemoryView) -> None:
    view.panels.selected_index = list(view.panels.titles).index("What holds it")
    panel = view._panels[view.panels.selected_index]
    wait(lambda: panel.tables.value)
    assert "parameters" in panel.said.value and "del spare" in panel.tables.value
    trace = panel._figure.data[0]
    assert "rank 0" in trace.labels and "spare" in trace.labels
    panel.ranks.value = 1
    wait(lambda: "rank 1" in panel._figure.data[0].labels)


def test_boxes_add_up_and_each_lies_in_one_that_is_there(asked: FakeRanks) -> None:
    from mlxbench_kernel.memory import Holdings

    drawn = boxes(Holdings(**asked.holdings[0]), 0)
    assert len(set(drawn["ids"])) == len(drawn["ids"])
    sizes = dict(zip(drawn["ids"], drawn["values"], strict=True))
    below: dict[str, int] = {}
    for parent, size in zip(drawn["parents"], drawn["values"], strict=True):
        assert parent == "" or parent in sizes
        below[parent] = below.get(parent, 0) + size
    assert all(size <= sizes[parent] for parent, size in below.items() if parent)
    assert below["rank 0"] == sizes["rank 0"]


def test_a_limit_is_told_before_it_is_set(
    view: MemoryView, asked: FakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    view.panels.selected_index = list(view.panels.titles).index("Limits")
    panel = view._panels[view.panels.selected_index]
    asked.said = {"said": "1.00 GB of cached buffers are given back"}
    panel.fields["cache"].value = "1GB"
    wait(lambda: "given back" in panel.said.value)
    assert ("memory_said", 1, {"sizes": {"cache": "1GB"}}) in asked.asked
    set_: list[Any] = []
    monkeypatch.setattr(view.memory, "_do", lambda *arguments: set_.append(arguments) or {})
    panel.ranks.value = 1
    press(view, "Set limits")
    wait(lambda: set_)
    assert set_ == [([1], "set_limits", {"cache": "1GB"})]
    asked.said = {"error": "cache limit: a size is written as 4GB, not 'abc'"}
    panel.fields["cache"].value = "abc"
    press(view, "Set limits")
    wait(lambda: "not &#x27;abc&#x27;" in view.error.value)
    assert panel.fields["cache"].value == "abc", "what was typed is still there"


def test_a_press_without_a_limit_says_what_is_missing(view: MemoryView) -> None:
    press(view, "Set limits")
    wait(lambda: "no limit was typed" in view.error.value)


def test_marks_go_to_the_ranks(view: MemoryView, asked: FakeRanks) -> None:
    view.name.value = "epoch 2"
    press(view, "Mark")
    wait(lambda: ("memory_mark", 1, {"name": "epoch 2"}) in asked.asked)
    press(view, "End mark")
    wait(lambda: ("memory_mark", 0, {"name": ""}) in asked.asked)


def test_numbers_for_others(view: MemoryView, asked: FakeRanks, tmp_path: Path) -> None:
    asked.marks[0] = [[0, "cell", "Cell In[3]", time.time() - 5, None]]
    asked.samples[0]["cell"] = 0.0
    taken = view.memory.feed.ranks[0].ring.taken
    wait(lambda: view.memory.feed.ranks[0].ring.taken > taken + 1)
    wait(lambda: view.memory.feed.ranks[0].marks and view.memory.feed.ranks[0].ring.taken > 3)
    frame = view.to_dataframe()
    assert {"rank", "host", *COLUMNS} == set(frame.columns)
    assert set(frame["pressure"]) == {"warn"} and set(frame["rank"]) == {0, 1}
    assert frame[frame["rank"] == 0]["cell"].tolist()[-1] == "Cell In[3]"
    view.to_csv(str(tmp_path / "memory.csv"))
    header, first, *_ = (tmp_path / "memory.csv").read_text().splitlines()
    assert header.startswith("rank,host,time,active") and ",studio," in first
    view.to_html(str(tmp_path / "memory.html"))
    page = (tmp_path / "memory.html").read_text()
    assert "studio" in page and "Cell In[3]" in page
    assert "rank 1, MLX active" in page and "What holds the memory of rank 0" in page
    assert page.count("* plotly.js v") == 1 and page.count("Plotly.newPlot(") >= 4
    assert "<script src=" not in page and "http-equiv" not in page, "it stands alone"


def test_cells_are_named_rightly_also_before_a_rank_was_started_anew(
    view: MemoryView, asked: FakeRanks
) -> None:
    seen = view.memory.feed.ranks[0]
    cell = COLUMNS.index("cell")

    def told() -> bool:
        return bool(seen.marks) and seen.ring.last is not None and seen.ring.last[cell] >= 0

    asked.marks[0] = [[0, "cell", "before", time.time(), None]]
    asked.samples[0]["cell"] = 0.0
    wait(told)
    asked.marks[0] = [[0, "cell", "after", time.time(), None]]
    asked.records[0] = "two"
    wait(lambda: len(seen.marks) == 2 and seen.ring.last is not None and seen.ring.last[cell] == 1)
    frame = view.to_dataframe()
    ran = [name for name in frame[frame["rank"] == 0]["cell"] if name == name]
    assert ran[0] == "before" and ran[-1] == "after" and sorted(set(ran)) == ["after", "before"]
    assert ran == sorted(ran, reverse=True), "first all of the one, then all of the other"


def test_a_report_with_thousands_of_cells_has_them_in_one_trace() -> None:
    rows = np.full((1000, len(COLUMNS)), NAN)
    rows[:, 0] = 1.7e9 + np.arange(1000) / 10
    marks = [
        Mark(n, "cell", f"Cell In[{n}]", 1.7e9 + n / 20, 1.7e9 + n / 20 + 0.04) for n in range(1990)
    ]
    marks += [Mark(1990, "mark", "epoch", 1.7e9 + 50), Mark(1991, "mark", "earlier", 1.0, 2.0)]
    figure = figure_of("rank 0", rows, marks)
    cells, epochs, *curves = figure.data
    assert len(curves) == 3 and not figure.layout.shapes and not figure.layout.annotations
    assert cells.name == "cells" and list(cells.text) == [f"Cell In[{n}]" for n in range(1990)]
    assert epochs.text == ("epoch",), "what ended before the first sample is left out"
    begin, width = 1.7e9 + 50, 1000 / 10 - 50 - 0.1
    middle = np.datetime64(epochs.x[0], "ms").astype(int) / 1000
    assert middle == pytest.approx(begin + width / 2, abs=0.01)
    assert epochs.width[0] == pytest.approx(width * 1000, abs=10)


def test_thinning_keeps_extremes() -> None:
    values = np.zeros(36_000)
    values[12_345], values[23_456] = 7, -7
    chosen = thinned(values)
    assert len(chosen) <= POINTS + 1 and {12_345, 23_456} <= set(chosen.tolist())


# -- the magic -------------------------------------------------------------------


@pytest.fixture
def shell(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setattr(memory_widgets, "watched", lambda cluster: memory)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    load_ipython_extension(shell)
    yield shell
    unload_ipython_extension(shell)
    InteractiveShell.clear_instance()


def said(shell: InteractiveShell, line: str) -> str:
    with capture_output() as captured:
        shell.run_line_magic("mlx_mem", line)
    shown = "\n".join(each.data.get("text/plain", "") for each in captured.outputs)
    return (captured.stdout + shown).strip()


def test_the_magic_shows_the_view(shell: InteractiveShell) -> None:
    assert said(shell, "").startswith("Memory: rank 0 2.00 GB")


def test_a_rank_that_does_not_answer_is_not_one_that_knows_nothing(
    shell: InteractiveShell, asked: FakeRanks
) -> None:
    with pytest.raises(
        UsageError, match=r"after Cell In\[7\] is not known; known are Cell In\[3\]"
    ):
        said(shell, "grew 7 --ranks 1")
    asked.silent.add(1)
    for line in ("grew 7 --ranks 1", "holds 1"):
        with pytest.raises(ClusterError, match="rank 1 has not answered in 5 s"):
            said(shell, line)


def test_the_magic_tells_of_pools_holdings_and_limits(
    shell: InteractiveShell, asked: FakeRanks
) -> None:
    status = said(shell, "status")
    assert "2.00 GB" in status and "18.0 GB of 32.0 GB free, pressure warn" in status
    asked.asked.clear()
    assert "22.0 GB" in said(shell, "limits")
    assert ("memory_limits", 1, {}) in asked.asked, "a cell may have set others a moment ago"
    assert "del spare" in said(shell, "holds 1")
    assert said(shell, "growth") == "no rank grows step after step, as far as was seen"
    assert "%mlx_mem clear-cache" in said(shell, "--help")
    asked.gone.add(1)
    wait(lambda: "gone since" in said(shell, "limits"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("statsu", "did you mean status"),
        ("limit", "takes NAME=SIZE"),
        ("limit gpu=3GB", "takes memory=SIZE"),
        ("limit cache=1GB --ranks 7", "there is no rank 7"),
        ("limit cache=1GB --ranks x", "0,2-3"),
        ("holds zero", "takes a rank, not 'zero'"),
        ("holds 0 --ranks 1", "takes no --ranks"),
        ("status now", "takes nothing after it"),
        ("csv", "takes FILE"),
    ],
)
def test_mistakes_are_one_line(shell: InteractiveShell, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        said(shell, line)
    assert "\n" not in str(raised.value)


def test_files_are_written_where_they_are_wanted(shell: InteractiveShell, tmp_path: Path) -> None:
    assert said(shell, f"csv {tmp_path / 'm.csv'}") == f"written to {tmp_path / 'm.csv'}"
    assert (tmp_path / "m.csv").stat().st_size > 100
