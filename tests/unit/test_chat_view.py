"""The chat in a cell, with a model that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_model import FakeModel, made
from ipywidgets.widgets.widget import _instances
from pressing import press, wait

from mlxbench_kernel.errors import ClusterError
from mlxbench_kernel.widgets import chat_page
from mlxbench_kernel.widgets.chat import ChatView
from mlxbench_kernel.widgets.generated import figures_line


@pytest.fixture
def lm() -> FakeModel:
    return FakeModel("Hello you", "I am fine", "or <b>not</b>")


@pytest.fixture
def view(lm: FakeModel) -> Iterator[ChatView]:
    view = lm.chat()
    yield view
    view.close()


def enter(view: ChatView, text: str) -> None:
    """Type a text and press Enter, as the browser tells it."""
    view.page._handle_custom_msg({"event": "send", "text": text}, [])


def idle(view: ChatView) -> bool:
    return not view.send.disabled and not view.answer.value


def test_a_chat(view: ChatView, lm: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    wait(lambda: "nothing was said yet" in view.said.value)
    assert view.again.disabled and view.back.disabled and view.stop.disabled
    enter(view, "Hi")
    wait(lambda: "Hello you" in view.said.value and idle(view))
    assert capsys.readouterr().out == "", "it is shown in the view, not in a cell's output too"
    assert "first token after 0.05 s" in view.line.value and "8 in the cache" in view.line.value
    assert view.entry.value == ""
    view.entry.value = "How are you?"
    press(view, "Send")
    wait(lambda: "I am fine" in view.said.value and idle(view))
    press(view, "Regenerate")
    # What the model says is text, never markup.
    wait(lambda: "or &lt;b&gt;not&lt;/b&gt;" in view.said.value and idle(view))
    assert "I am fine" not in view.said.value
    press(view, "Undo")
    wait(lambda: view.entry.value == "How are you?")
    assert [each["content"] for each in view.chat.messages] == ["Hi", "Hello you"]
    press(view, "Clear")
    press(view, "Clear: sure?")
    wait(lambda: "nothing was said yet" in view.said.value)


def test_what_the_browser_sends_late_does_not_fill_the_entry(view: ChatView) -> None:
    enter(view, "Hi")
    view.entry.set_state({"value": "Hi"})  # it held that back while the kernel was busy
    assert view.entry.value == ""
    wait(lambda: "Hello you" in view.said.value and idle(view))
    for typed in ("H", "Hi"):
        view.entry.set_state({"value": typed})
    assert view.entry.value == "Hi", "typed again"


def test_stop_works_while_it_answers(view: ChatView, lm: FakeModel) -> None:
    lm.going.clear()
    enter(view, "Hi")
    wait(lambda: "Hello" in view.answer.value and not view.stop.disabled)
    assert view.send.disabled and view.again.disabled
    assert "Hi" in view.said.value, "the question is shown at once"
    enter(view, "And?")  # is not lost in the browser, and asks nobody
    press(view, "Stop")
    wait(lambda: idle(view))
    assert "interrupted" in view.line.value and view.error.value == ""
    assert [each["content"] for each in view.chat.messages] == ["Hi", "Hello"]
    assert len(lm.asked) == 1


def test_a_fault_is_one_line_and_takes_nothing_along(view: ChatView, lm: FakeModel) -> None:
    lm.answers = ["Hello you", ClusterError("rank 1 is gone: type %mlx_dist heal\nmore")]
    enter(view, "Hi")
    wait(lambda: "Hello you" in view.said.value and idle(view))
    enter(view, "And?")
    wait(lambda: view.error.value)
    assert "rank 1 is gone: type %mlx_dist heal</div>" in view.error.value
    wait(lambda: idle(view))
    assert "Hello you" in view.said.value and "half an answer" in view.said.value


def test_what_was_not_answered_can_be_sent_again(view: ChatView, lm: FakeModel) -> None:
    view.settings.seed.value = "one"
    enter(view, "Hi")
    wait(lambda: "is no whole number" in view.error.value and view.entry.value == "Hi")
    assert lm.asked == []


def test_settings_are_of_the_next_answer(view: ChatView, lm: FakeModel) -> None:
    settings = view.settings
    settings.system.value, settings.seed.value = "Be brief", "7"
    settings.temp.value, settings.top_p.value, settings.most.value = 0.7, 0.9, 33
    enter(view, "Hi")
    wait(lambda: lm.asked and idle(view))
    prompt, most, options = lm.asked[0]
    assert prompt[0] == {"role": "system", "content": "Be brief"} and most == 33
    assert options == {"seed": 7, "keep": "chat", "temp": 0.7, "top_p": 0.9}


def test_what_code_says_is_shown(view: ChatView) -> None:
    view.chat.say("Hi")
    wait(lambda: "Hello you" in view.said.value and idle(view))


def test_a_closed_view_leaves_nothing(lm: FakeModel) -> None:
    before = set(_instances)
    view = lm.chat("Be brief", temp=0.5)
    assert view.settings.temp.value == 0.5 and view.settings.widget.selected_index == 0
    view.close()
    assert set(_instances) == before
    view.close()


def test_the_share_of_a_draft_model_is_among_the_figures() -> None:
    found = made("a text", 20)
    assert "drafted" not in figures_line(found)
    found.figures["drafted"] = 15
    assert "20 tokens, 20/s · 75 % of them drafted" in figures_line(found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n```python\nx < 1\n```\nb", "a<pre>x &lt; 1</pre>b"),
        ("```\nx", "<pre>x</pre>"),
        ("<think>\nhm\n</think>\n\nyes", "<details><summary>thought</summary>hm</details>yes"),
        ("<think>\n\n</think>\n\nyes", "yes"),
        ("a  b\n c", "a  b\n c"),
    ],
)
def test_code_and_thoughts(text: str, shown: str) -> None:
    messages: list[Any] = [{"role": "assistant", "content": text}]
    assert f'bubble">{shown}</div></div>' in chat_page.said(messages)


def test_a_thought_is_open_while_it_comes() -> None:
    assert "<details open>" in chat_page.coming("<think>hm")
    assert "<details>" in chat_page.coming("<think>hm</think>yes")
