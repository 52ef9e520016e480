"""What ranks send of their memory by themselves, and what becomes of it in the notebook."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from jupyter_client.session import Session
from running import kill_controller

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.memory.record import COLUMNS, decode, encode
from mlxbench_kernel.rank.requests import MEMORY
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.widgets.memory import MemoryView

RECORD = "from mlxbench_kernel.memory.record import RECORD\n"
BLOCK = """
import os, time
while rank == 0 and not os.path.exists({!r}):
    time.sleep(0.05)
mx.eval(mx.distributed.all_sum(mx.ones(4)))
"""


def wait(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(ranks: Cluster, code: str) -> dict[int, Any]:
    result = ranks.execute(code)
    assert not result.errors, result.errors
    return ranks.results()


@contextmanager
def watching(ranks: Cluster) -> Iterator[Memory]:
    memory = Memory(ranks)
    end = memory.watch(lambda: None)
    try:
        wait(lambda: all(each.pushes for each in memory.feed.ranks))
        yield memory
    finally:
        end()
        memory.close()


@contextmanager
def heard(ranks: Cluster) -> Iterator[list[dict[str, Any]]]:
    """All that ranks send by themselves."""
    messages: list[dict[str, Any]] = []
    end = ranks.client.hear(messages.append)
    yield messages
    end()


def times(memory: Memory, rank: int) -> set[float]:
    _, rows = memory.feed.ranks[rank].ring.since(0)
    return set(rows[:, 0].tolist())


def test_samples_and_marks_are_sent_while_a_collective_blocks(
    ranks: Cluster, tmp_path: Path
) -> None:
    enough = tmp_path / "enough"
    with watching(ranks) as memory, heard(ranks) as messages:
        began = time.time()
        cell = threading.Thread(target=run, args=(ranks, BLOCK.format(str(enough))), daemon=True)
        cell.start()
        seen = memory.feed.ranks[1]
        wait(lambda: seen.marks and seen.marks[-1].lasts and seen.marks[-1].begin > began)
        before = len(messages)
        wait(lambda: sum(each["record"] == seen.record for each in messages[before:]) >= 3)
        assert cell.is_alive() and seen.marks[-1].lasts
        ours = [
            decode(each["samples"]) for each in messages[before:] if each["record"] == seen.record
        ]
        assert {row[COLUMNS.index("cell")] for row in np.concatenate(ours)} == {
            seen.marks[-1].number
        }
        enough.touch()
        cell.join()
        wait(lambda: not seen.marks[-1].lasts)


def test_they_are_not_asked_for_what_they_send(ranks: Cluster) -> None:
    with watching(ranks) as memory:
        asked: list[str] = []
        ask = memory.feed.asked.ask

        def counted(name: str, *arguments: Any) -> dict[int, Any]:
            asked.append(name)
            return ask(name, *arguments)

        memory.feed.asked.ask = counted  # type: ignore[method-assign]
        taken = memory.feed.ranks[0].ring.taken
        wait(lambda: memory.feed.ranks[0].ring.taken >= taken + 30)
        assert asked.count("memory") < 10


def test_a_lost_message_leaves_no_hole(ranks: Cluster) -> None:
    with watching(ranks) as memory:
        run(
            ranks,
            RECORD + "lost, send = [], RECORD.pushing.send\nRECORD.pushing.send = lost.append",
        )
        lost = run(ranks, "import time\nwhile not lost: time.sleep(0.05)\nlost[:]")
        run(ranks, "RECORD.pushing.send = send")
        for rank, messages in lost.items():
            missed = {row[0] for each in messages for row in decode(each["samples"])}
            wait(lambda rank=rank, missed=missed: missed <= times(memory, rank))
            _, rows = memory.feed.ranks[rank].ring.since(0)
            assert (np.diff(rows[:, 0]) > 0).all(), "none is there twice"
        known = memory.feed.ranks[0].cursor
        assert run(ranks, RECORD + "RECORD.ring.taken")[0] >= known


def test_two_views_cost_one_and_nothing_is_sent_after_the_last_one(ranks: Cluster) -> None:
    one, two = MemoryView(ranks), MemoryView(ranks)
    memory = one.memory
    assert two.memory is memory
    wait(lambda: all(each.pushes for each in memory.feed.ranks))
    with heard(ranks) as messages:
        wait(lambda: len(messages) > 8)
        sent = [(each["record"], each["next"]) for each in messages]
        assert len(set(sent)) == len(sent), "each is sent once"
    one.close()
    assert not memory.feed.closed
    two.close()
    assert memory.feed.closed
    goes_on = RECORD + "RECORD.pushing.goes_on"
    wait(lambda: not any(run(ranks, goes_on).values()))
    run(ranks, "sent, send = [], RECORD.pushing.send\nRECORD.pushing.send = sent.append")
    assert run(ranks, "RECORD.take(); RECORD.mark('x'); RECORD.take(); len(sent)") == {0: 0, 1: 0}
    run(ranks, "RECORD.pushing.send = send")
    three = MemoryView(ranks)
    assert three.memory is not memory
    wait(lambda: all(each.pushes for each in three.memory.feed.ranks))
    three.close()


def test_what_is_not_signed_with_the_key_of_the_cluster_is_dropped(ranks: Cluster) -> None:
    with watching(ranks) as memory, heard(ranks) as messages:
        seen = memory.feed.ranks[0]
        stranger = zmq.Context.instance().socket(zmq.XPUB)
        stranger.linger = 0
        info = ranks.machinery._engine_info()
        stranger.connect(f"{info['interface']}:{info['iopub']}")
        assert stranger.poll(10_000) and stranger.recv(), "it is connected"

        def send(key: bytes, name: str) -> None:
            content = {
                "record": seen.record, "next": seen.cursor, "about": name,
                "samples": encode(np.empty((0, len(COLUMNS)))),
                "was": seen.version, "version": seen.version + 1,
                "marks": [[99, "mark", name, 1.0, 2.0]],
            }  # fmt: skip
            session = Session(key=key)
            stranger.send_multipart(session.serialize(session.msg(MEMORY, content=content), b"x"))

        send(b"", "unsigned")
        send(b"another key", "forged")
        send(ranks.client.session.key, "signed")
        wait(lambda: any(each.get("about") == "signed" for each in messages))
        assert not {each.get("about") for each in messages} & {"unsigned", "forged"}
        stranger.close()
        assert not {mark.name for mark in seen.marks} & {"unsigned", "forged"}
        now = time.time()
        wait(lambda: seen.last["time"] > now)


def test_it_goes_on_with_a_controller_that_was_started_again(ranks: Cluster) -> None:
    with watching(ranks) as memory:
        kill_controller(ranks)
        assert ranks.bring_back() == []
        with heard(ranks) as messages:
            wait(
                lambda: (
                    {each["record"] for each in messages} >= {r.record for r in memory.feed.ranks}
                )
            )
        now = time.time()
        wait(lambda: all(each.last["time"] > now for each in memory.feed.ranks))
        for each in memory.feed.ranks:
            assert (np.diff(each.ring.since(0)[1][:, 0]) > 0).all()


def test_they_are_encrypted_where_all_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPP_ENABLE_CURVE", "1")  # as for a cluster that listens beyond this machine
    cluster = Cluster.up(2)
    try:
        assert cluster.machinery._engine_info()["curve_serverkey"]
        with watching(cluster) as memory, heard(cluster) as messages:
            wait(lambda: {r["record"] for r in messages} == {r.record for r in memory.feed.ranks})
    finally:
        cluster.down()
