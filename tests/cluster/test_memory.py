"""Memory of two real ranks, as a notebook sees it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pressing import press, wait
from running import run

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.record import COLUMNS
from mlxbench_kernel.remote.lateness import how_late
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.remote.pool_bars import bars
from mlxbench_kernel.widgets.memory import MemoryView

MB = 1_000_000


@pytest.fixture
def memory(ranks: Cluster) -> Iterator[Memory]:
    memory = Memory(ranks)
    end = memory.watch(lambda: None)
    yield memory
    end()
    memory.close()


def fresh(memory: Memory) -> None:
    """Until each rank has told of a moment after this one."""
    now = time.time()
    wait(lambda: all(each.last.get("time", 0) > now for each in memory.feed.ranks))


def test_it_is_what_mlx_and_the_system_say(ranks: Cluster, memory: Memory) -> None:
    run(ranks, "kept = mx.zeros((1000, 1000 * (rank + 1))) + 1; mx.eval(kept)")
    fresh(memory)
    said = "(mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory())"
    run(ranks, said)
    for rank, (active, cache, peak) in ranks.results().items():
        last = memory.feed.ranks[rank].last
        assert abs(last["active"] - active) < 1000 and last["peak"] == peak
        assert abs(last["cache"] - cache) < 1000
        assert last["active"] >= 4 * MB * (rank + 1)
        status = Path(f"/proc/{memory.feed.ranks[rank].pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        assert abs(last["footprint"] - 1024 * int(resident.split()[1])) < 20 * MB
    (bar,) = bars(memory.feed.ranks, memory.markers)
    assert {each.rank for each in bar.segments} == {-1, 0, 1}


def test_it_is_live_while_a_collective_blocks(ranks: Cluster, memory: Memory) -> None:
    code = "import time\nif rank == 0: time.sleep(2.5)\nmx.eval(mx.distributed.all_sum(mx.ones(4)))"
    began = time.time()
    run(ranks, code)
    _, rows = memory.feed.ranks[1].ring.since(0)
    times = rows[rows[:, 0] > began, 0]
    within = times[times < began + 2.4]
    assert len(within) > 10 and np.diff(within).max() < 0.6
    marks = [mark for mark in memory.feed.ranks[1].marks if mark.begin >= began - 1]
    assert marks[-1].kind == "cell" and marks[-1].name.startswith("import time")
    cells = rows[(rows[:, 0] > began + 0.5) & (rows[:, 0] < began + 2), COLUMNS.index("cell")]
    assert set(cells) == {marks[-1].number}


def test_marks_go_to_all_ranks(ranks: Cluster, memory: Memory) -> None:
    memory.mark("warm-up")
    memory.mark("training")
    memory.mark("")

    def marked(rank: int) -> list[tuple[str, bool]]:
        marks = memory.feed.ranks[rank].marks
        return [(each.name, each.end == each.end) for each in marks if each.kind == "mark"]

    wait(lambda: all(len(marked(rank)) == 2 and marked(rank)[1][1] for rank in (0, 1)))
    assert marked(0) == marked(1) == [("warm-up", True), ("training", True)]


def test_limits_are_set_where_cells_run(ranks: Cluster, memory: Memory) -> None:
    run(ranks, "passing = mx.zeros((4000, 1000)) + 1; mx.eval(passing); del passing")
    assert "of cached buffers are given back" in memory.said_beforehand(cache="0")
    memory.set_limits([1], cache="0")
    run(ranks, "mx.get_cache_memory()")
    assert ranks.results()[1] == 0 < ranks.results()[0]
    assert memory.limits()[1]["cache"] == 0
    assert memory.clear_cache() >= 16 * MB
    memory.set_limits(memory="1GB")
    run(ranks, "mx.get_memory_limit()")
    assert set(ranks.results().values()) == {10**9}
    memory.reset_peak()
    run(ranks, "mx.get_peak_memory()")
    assert max(ranks.results().values()) < 16 * MB
    memory.set_limits(memory="75%", cache="8GB")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"cache": "-1"}, "-1"),
        ({"memory": "900TB"}, "more than the pool"),
        ({"cache": "abc"}, "abc"),
    ],
)
def test_a_wrong_limit_is_one_line_and_changes_nothing(
    ranks: Cluster, memory: Memory, sizes: dict[str, str], said: str
) -> None:
    before = memory.limits()
    with pytest.raises(UsageError, match=said):
        memory.set_limits(**sizes)
    with pytest.raises(UsageError, match="no rank 7"):
        memory.set_limits([7], cache="1GB")
    assert memory.limits() == before


def test_what_holds_it_is_found_by_name_also_while_a_cell_runs(
    ranks: Cluster, memory: Memory
) -> None:
    run(
        ranks,
        "model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 500))\n"
        "mx.eval(model.parameters())\n"
        "waiting = model.layers[0].weight @ model.layers[1].weight",
    )
    found = memory.look(0)
    assert found.bytes[found.find("model.layers.0.weight")] == MB
    assert found.kinds[found.find("model")] == "parameters"
    assert found.nodes[found.find("waiting")] > 0, "it is idle, so graphs are gone into"
    began = threading.Event()
    cell = threading.Thread(
        target=lambda: (began.set(), run(ranks, "import time; time.sleep(3)")), daemon=True
    )
    cell.start()
    assert began.wait(5)
    wait(lambda: memory.feed.ranks[0].last["cell"] == memory.feed.ranks[0].last["cell"])
    busy = memory.look(0)
    assert cell.is_alive()
    assert busy.bytes[busy.find("model.layers.0.weight")] == MB
    cell.join()


def test_what_holds_it_does_not_wait_for_a_cell_that_begins_meanwhile(
    ranks: Cluster, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was not there yet when the rank said that it is idle."""
    enough = tmp_path / "enough"
    code = f"import os, time\nwhile not os.path.exists({str(enough)!r}):\n    time.sleep(0.01)"
    cell = threading.Thread(target=lambda: run(ranks, code), daemon=True)
    asked = memory._ask

    def ask(call: str, *rest: Any) -> Any:
        told = asked(call, *rest)
        if call == "memory_busy":
            assert told == {0: False}
            cell.start()
            wait(lambda: asked("memory_busy", [0]) == {0: True})
        return told

    monkeypatch.setattr(memory, "_ask", ask)
    found = memory.look(0)
    assert cell.is_alive() and found.graphs is False
    enough.touch()
    cell.join()


def test_memory_that_grows_from_cell_to_cell_is_found_beside_an_idle_stepper(
    ranks: Cluster, memory: Memory
) -> None:
    run(
        ranks,
        "from mlxbench_kernel.training import Stepper\n"
        "import mlx.optimizers as optim\n"
        "net = nn.Linear(4, 4)\n"
        "stepper = Stepper(net, optim.SGD(0.1), lambda m, x: m(x).sum(), [(mx.ones((2, 4)),)])\n"
        "stepper.run(30)\n"
        "log = []",
    )
    for _ in range(100):
        run(ranks, "log.append(mx.zeros((1000, 500 * (1 + rank))) + 1); mx.eval(log)")
        fresh(memory)
        reported = memory.growth.reported.copy()
        said = {rank: each.said for rank, each in reported.items() if each.said}
        if len(said) == 2:
            break
    assert "rank 0 grows with each cell, by 2.0" in said[0] and "log holds" in said[0]
    assert "rank 1 grows with each cell, by 4.0" in said[1]
    run(ranks, "del log")


def test_the_view_says_what_it_waits_for_and_looks_meanwhile(
    ranks: Cluster, memory: Memory, tmp_path: Path
) -> None:
    run(ranks, "weights = mx.zeros((1000, 1000)) + 1; mx.eval(weights)")
    enough = tmp_path / "enough"
    code = f"import os, time\nwhile not os.path.exists({str(enough)!r}): time.sleep(0.05)"
    cell = threading.Thread(
        target=lambda: ranks.execute(code, ranks=[1], name="Cell In[9]"), daemon=True
    )
    cell.start()
    wait(lambda: memory.feed.ranks[1].cell)
    view = MemoryView(memory)
    try:
        holdings, limits = view._panels
        limits.fields["cache"].value = "3GB"
        wait(lambda: "GB" in limits.said.value or "cache" in limits.said.value)
        press(view, "Set limits")
        wait(lambda: "setting limits: it waits until Cell In[9] (rank 1) has" in view.busy.value)
        view.panels.selected_index = 0
        for rank in (0, 1):  # one that is idle, and one that is not
            holdings.ranks.value = rank
            wait(lambda rank=rank: holdings.shown == rank)
            assert "weights" in holdings.tables.value
        assert memory.feed.ranks[1].cell and "it waits" in view.busy.value
        enough.touch()
        wait(lambda: view.busy.value == "")
        assert memory.limits()[1]["cache"] == 3000 * MB
    finally:
        enough.touch()
        cell.join()
        view.close()


def test_want_of_memory_in_a_cell_is_told_with_sizes_and_what_to_do(ranks: Cluster) -> None:
    # As MLX raises on Metal and CUDA; its allocator for the CPU ends the process instead.
    said = "[malloc] Unable to allocate 64000000000 bytes."
    result = ranks.execute(f"raise RuntimeError({said!r})", ranks=[1])
    text = "\n".join(result.errors[1]["traceback"])
    assert said in text and "64.0 GB" in text and "MLX holds" in text and "%mlx_mem" in text
    other = ranks.execute("raise RuntimeError('another')", ranks=[1])
    assert "MLX holds" not in "\n".join(other.errors[1]["traceback"])


def test_a_killed_rank_is_said_and_is_there_again_after_healing(ranks: Cluster) -> None:
    memory = Memory(ranks)
    end = memory.watch(lambda: None)
    victim = memory.feed.ranks[1]
    os.kill(victim.pid, signal.SIGKILL)
    wait(lambda: victim.why)
    assert "gone since" in how_late(victim) and "SIGKILL" in how_late(victim)
    before = memory.feed.ranks[0].ring.taken
    wait(lambda: memory.feed.ranks[0].ring.taken > before)
    (bar,) = bars(memory.feed.ranks, memory.markers)
    assert re.fullmatch(r"rank 1 died \S+ s ago \(killed by SIGKILL\)", bar.said[0])
    (held,) = [each for each in bar.segments if each.rank == 1]
    assert held.kind == "held" and held.bytes == victim.last["footprint"]
    ranks.heal()
    wait(lambda: victim.since is None and victim.pid == ranks.info.ranks[1].pid)
    fresh(memory)
    _, rows = victim.ring.since(0)
    assert (np.diff(rows[:, 0]) > 0).all(), "what was before is still there"
    end()
    memory.close()


def test_watching_goes_on_with_ranks_that_were_started_anew(ranks: Cluster) -> None:
    memory = Memory(ranks)
    end = memory.watch(lambda: None)
    before = [each.pid for each in memory.feed.ranks]
    ranks.restart()
    wait(lambda: all(each.since is None for each in memory.feed.ranks))
    fresh(memory)
    assert [each.pid for each in memory.feed.ranks] == [each.pid for each in ranks.info.ranks]
    assert not set(before) & {each.pid for each in memory.feed.ranks}
    assert not memory.feed.closed
    end()
    memory.close()
