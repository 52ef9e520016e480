"""A chat with a language model on two ranks: history, cache, stopping, and cells beside it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Recorded, run

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import CellTimeout, ClusterError, GivenUp
from mlxbench_kernel.models import generate, load
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.remote.conversation import Conversation
from mlxbench_kernel.remote.language_model import Generated, ModelOnRanks
from mlxbench_kernel.remote.stepping import Stepping

LONG = 3500  # tokens of an answer that is never waited for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "llama", files=2)


@pytest.fixture
def lm(ranks: Cluster, folder: Path) -> ModelOnRanks:
    return ModelOnRanks.load(folder, "tensor", cluster=ranks)


class Begun:
    """Shows an answer; says when there is some of it, and who was waited for."""

    def __init__(self) -> None:
        self.some, self.waited = threading.Event(), threading.Event()
        self.status = ""

    def __call__(self, found: Generated, status: str) -> None:
        if found.text:
            self.some.set()
        if status.startswith("waiting for"):
            self.status = status
            self.waited.set()


def beside(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Do something on another thread; what it gave or raised is in the list at its end."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_each_turn_reads_only_what_is_new(lm: ModelOnRanks, folder: Path) -> None:
    alone = load(folder)
    chat = Conversation(lm, "Be brief", max_tokens=12)
    first = chat.say("Who are you?")
    assert first.text == generate(alone, chat.messages[:2], 12)
    again = chat.regenerate()
    assert again.text == first.text
    # All but the last token, which the model has to be given.
    assert again.figures["reused"] == again.figures["prompt_tokens"] - 1
    second = chat.say("And what can you do?")
    assert second.figures["reused"] >= first.figures["prompt_tokens"]
    assert second.text == generate(alone, chat.messages[:4], 12)


def test_a_stopped_answer_stays_and_the_chat_goes_on(lm: ModelOnRanks, folder: Path) -> None:
    chat = Conversation(lm, max_tokens=LONG)
    begun = Begun()
    thread, found = beside(lambda: chat.say("Tell me a story", begun))
    assert begun.some.wait(30)
    chat.stop()
    thread.join(30)
    assert isinstance(found[0], GivenUp) and "the text so far is kept" in str(found[0])
    assert chat.messages[-1]["role"] == "assistant" and chat.messages[-1]["content"]
    assert chat.last is not None and 0 < chat.last.figures["tokens"] < LONG
    stopped = chat.last.figures
    chat.max_tokens = 8
    again = chat.regenerate()
    # All ranks have ended after the same token: their caches are as good as before.
    assert again.figures["reused"] == stopped["prompt_tokens"] - 1
    assert chat.say("Go on").text == generate(load(folder), chat.messages[:3], 8)


def test_ranks_that_do_not_end_together_are_interrupted(
    lm: ModelOnRanks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "halt", lambda: False)
    chat = Conversation(lm, max_tokens=LONG)
    begun = Begun()
    thread, found = beside(lambda: chat.say("Tell me a story", begun))
    assert begun.some.wait(30)
    chat.stop()
    thread.join(30)
    # Of a slow machine the ranks may still end what they compute.
    assert isinstance(found[0], GivenUp | CellTimeout)
    assert chat.messages[-1]["role"] == "assistant" and chat.messages[-1]["content"]
    chat.max_tokens = 8
    assert chat.regenerate().text == generate(load(folder), chat.messages[:1], 8)


def test_a_cell_waits_for_the_answer(
    ranks: Cluster, lm: ModelOnRanks, folder: Path, recorded: Recorded
) -> None:
    chat = Conversation(lm, max_tokens=400)
    begun = Begun()
    thread, found = beside(lambda: chat.say("Tell me a story", begun))
    assert begun.some.wait(30)
    assert not ranks.execute("print(rank)", output=recorded).errors
    thread.join(30)
    assert [recorded.text(rank) for rank in (0, 1)] == ["0\n", "1\n"]
    assert any("waiting for what runs on the ranks in the background" in each
               for each in recorded.statuses)  # fmt: skip
    assert found[0].text == generate(load(folder), chat.messages[:1], 400)


@pytest.fixture(params=["alone", "beside a stepper"])
def stepper(
    request: pytest.FixtureRequest, ranks: Cluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    if request.param == "alone":
        yield
        return
    monkeypatch.setattr(ranks.background, "stepper", ranks.background.stepper)
    code = """
from mlxbench_kernel import Stepper
net = mlx.nn.Linear(2, 2)
stepper = Stepper(net, mlx.optimizers.SGD(0.1), lambda net, x: net(x).sum(), [mx.ones((1, 2))])
"""
    run(ranks, f"import mlx.nn, mlx.optimizers, mlx.core as mx\n{code}")
    stepping = Stepping(ranks)
    yield
    stepping.close()


@pytest.mark.usefixtures("stepper")
def test_an_answer_waits_for_a_cell_and_can_be_given_up(
    ranks: Cluster, lm: ModelOnRanks, tmp_path: Path
) -> None:
    chat = Conversation(lm, max_tokens=8)
    code = (
        "import os, time\n"
        f"while not os.path.exists({str(tmp_path / 'enough')!r}):\n    time.sleep(0.01)\n"
    )
    cell, ended = beside(lambda: ranks.execute(code))
    busy = threading.Event()
    while not busy.is_set():
        states = ranks.doing([0])
        if "idle" not in states[0]:
            busy.set()
    begun = Begun()
    thread, found = beside(lambda: chat.say("Hi", begun))
    assert begun.waited.wait(30)
    chat.stop()
    thread.join(30)
    assert isinstance(found[0], GivenUp) and chat.messages == []
    (tmp_path / "enough").touch()
    cell.join(30)
    assert not ended[0].errors
    assert chat.say("Hi").figures["tokens"] == 8


def test_a_rank_that_dies_takes_no_word_along(folder: Path) -> None:
    cluster = Cluster.up(2)
    try:
        chat = Conversation(ModelOnRanks.load(folder, "tensor", cluster=cluster), max_tokens=LONG)
        chat.max_tokens = 8
        chat.say("Hi")
        chat.max_tokens = LONG
        begun = Begun()
        thread, found = beside(lambda: chat.say("Tell me a story", begun))
        assert begun.some.wait(30)
        os.kill(cluster.info.ranks[1].pid, signal.SIGKILL)
        thread.join(60)
        assert isinstance(found[0], ClusterError) and "rank 1" in str(found[0])
        assert [each["role"] for each in chat.messages] == ["user", "assistant"] * 2
        assert chat.messages[-1]["content"]
        assert chat.last is not None and chat.last.finish == "interrupted"
        cluster.heal()
        chat.max_tokens = 8
        again = chat.regenerate()
        assert again.figures["reused"] == 0, "of the rank that came back there is no cache"
        assert again.text == generate(load(folder), chat.messages[:-1], 8)
    finally:
        cluster.down()
