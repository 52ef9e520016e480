"""A chat as code, with a model that is not there."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from fake_model import FakeModel

from mlxbench_kernel.errors import ClusterError, GivenUp, StorageError, UsageError
from mlxbench_kernel.remote.conversation import Conversation

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]


def test_all_that_was_said_is_sent_each_time() -> None:
    lm = FakeModel("Hello you", "I am fine")
    chat = Conversation(lm, "Be brief", max_tokens=9, seed=3, temp=0.5)
    assert chat.say("Hi").text == "Hello you"
    chat.say("How are you?")
    system = {"role": "system", "content": "Be brief"}
    prompt, most, options = lm.asked[1]
    assert prompt == [system, *HI, {"role": "user", "content": "How are you?"}]
    assert most == 9 and options == {"seed": 3, "keep": "chat", "temp": 0.5}
    assert [each["role"] for each in chat.messages] == ["system", *["user", "assistant"] * 2]
    assert repr(chat) == "Conversation with fake, 2 turns"


def test_going_back() -> None:
    chat = Conversation(FakeModel("Hello you", "one", "two"))
    chat.say("Hi")
    chat.say("Count")
    assert chat.regenerate().text == "two"
    assert chat.messages[-1]["content"] == "two" and len(chat.messages) == 4
    assert chat.undo() == "Count"
    assert chat.messages == HI
    chat.system = "Be brief"
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "Be brief"}]
    chat.system = ""
    with pytest.raises(UsageError, match="nothing was asked yet"):
        chat.undo()
    with pytest.raises(UsageError, match="nothing was asked yet"):
        chat.regenerate()
    with pytest.raises(UsageError, match="nothing was said: give some text"):
        chat.say("  ")


def test_stopping_keeps_the_text_so_far() -> None:
    lm = FakeModel("Hello you")
    chat = Conversation(lm)
    lm.going.clear()

    def stop() -> None:
        assert lm.begun.wait(20)
        with pytest.raises(UsageError, match="an answer is on its way"):
            chat.say("And?")
        chat.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(GivenUp, match="stopped; the text so far is kept"):
        chat.say("Hi")
    stopping.join()
    assert chat.messages == [HI[0], {"role": "assistant", "content": "Hello"}]
    assert chat.last is not None and chat.last.finish == "interrupted"


def test_a_rank_that_dies_takes_nothing_along() -> None:
    lm = FakeModel("Hello you", ClusterError("rank 1 is gone"), "again")
    chat = Conversation(lm)
    chat.say("Hi")
    with pytest.raises(ClusterError, match="rank 1 is gone"):
        chat.say("Count")
    assert chat.messages[:2] == HI
    assert chat.messages[-1] == {"role": "assistant", "content": "half an answer"}
    assert chat.regenerate().text == "again"


def test_files(tmp_path: Path) -> None:
    chat = Conversation(FakeModel("Hello you"))
    chat.say("Hi")
    chat.save(tmp_path / "chat.json")
    assert json.loads((tmp_path / "chat.json").read_text()) == HI
    other = Conversation(FakeModel("I said that")).load(tmp_path / "chat.json")
    assert other.messages == HI
    with pytest.raises(StorageError, match="could not be written"):
        chat.save(tmp_path / "nowhere" / "chat.json")
    with pytest.raises(UsageError, match="cannot be read"):
        chat.load(tmp_path / "nowhere.json")
    for text, said in [
        ("{", "is no JSON"),
        ("{}", "holds no list of messages"),
        ('[{"role": "me", "content": "a"}]', "message 1 is none: it has to have a role"),
    ]:
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(UsageError, match=said):
            chat.load(tmp_path / "wrong.json")
    assert chat.messages == HI


def test_a_model_that_cannot_chat_says_what_it_can() -> None:
    lm = FakeModel(template=False)
    with pytest.raises(UsageError) as caught:
        lm.conversation()
    assert str(caught.value) == (
        "fake has no chat template, so it cannot chat: load a model that was made for it, or type "
        'lm.generate("text to go on with")'
    )
    with pytest.raises(UsageError, match="tepm is not a sampling option: did you mean temp"):
        FakeModel().conversation(tepm=1)
