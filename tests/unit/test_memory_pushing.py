"""What a process sends of its memory without being asked for each sample."""

from __future__ import annotations

from typing import Any

import pytest

from mlxbench_kernel.memory import pushing
from mlxbench_kernel.memory.pushing import HOLD_SECONDS, Pushing
from mlxbench_kernel.memory.record import COLUMNS, Record, decode, read_marks

GB = 1e9


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pushing, "time", clock)
    return clock


@pytest.fixture
def sending(clock: Clock) -> Pushing:
    sending = Pushing(2, [1])
    sending.send = lambda message: None
    return sending


def test_nothing_is_sent_that_nobody_asked_for(sending: Pushing, clock: Clock) -> None:
    assert sending.take([1, GB], 1, 0, {}) is None
    assert sending.ask(10.0, 0)
    assert sending.take([2, GB], 2, 0, {}) is not None
    clock.now += 10.0
    assert sending.take([3, GB], 3, 0, {}) is None, "who asked has not asked again"


def test_who_cannot_send_says_so(clock: Clock) -> None:
    assert not Pushing(2, [1]).ask(10.0, 0)


def test_samples_that_say_nothing_new_wait_for_others(sending: Pushing, clock: Clock) -> None:
    sending.ask(10.0, 0)
    assert sending.take([0, GB], 1, 0, {"record": "one"}) is not None
    sent, number = None, 1
    while sent is None:
        clock.now += 0.1
        number += 1
        sent = sending.take([number, 1.001 * GB], number, 0, {"record": "one"})
    assert clock.now == pytest.approx(100.0 + HOLD_SECONDS)
    assert (sent["record"], sent["next"], sent["marks"]) == ("one", number, [])
    flat = rows(sent)
    assert flat == [(number - 3, 1.001 * GB), (number - 2, 1.001 * GB),
                    (number - 1, 1.001 * GB), (number, 1.001 * GB)]  # fmt: skip


def test_what_changes_is_sent_at_once(sending: Pushing, clock: Clock) -> None:
    sending.ask(10.0, 0)
    for number, size in enumerate((1.0, 1.01, 1.02, 0.5)):
        clock.now += 0.1
        sent = sending.take([number, size * GB], number + 1, 0, {})
        assert sent is not None and rows(sent) == [(number, size * GB)]


def rows(message: dict[str, Any]) -> list[tuple[float, ...]]:
    import base64
    import struct

    return list(struct.iter_unpack("<2d", base64.b64decode(message["samples"])))


def test_a_record_sends_samples_and_the_marks_that_changed() -> None:
    kept, sent = Record(), []
    kept.pushing.send = sent.append
    kept.mark("before")
    told = kept.tell(push=True, period=1e6)
    assert told["pushes"] and len(told["marks"]) == 1
    kept.begin_cell("Cell In[1]")
    kept.take()
    kept.end_cell()
    kept.take()
    first, last = sent[-2:]
    assert first["record"] == told["record"] and first["was"] == told["version"]
    assert [mark.name for mark in read_marks(first["marks"])] == ["Cell In[1]"]
    assert last["was"] == first["version"] and last["version"] == kept.version
    assert not read_marks(last["marks"])[0].lasts, "it has ended, and is sent again"
    samples = decode(last["samples"])
    assert samples.shape == (last["next"] - first["next"], len(COLUMNS))
    following, again = kept.ring.since(first["next"])
    assert following == last["next"] and again.tobytes() == samples.tobytes()
