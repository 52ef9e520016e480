"""A chat with a language model in a cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as ui

from mlxbench_kernel.errors import GivenUp, UsageError
from mlxbench_kernel.remote.conversation import Conversation
from mlxbench_kernel.remote.language_model import Generated
from mlxbench_kernel.widgets import chat_page as page
from mlxbench_kernel.widgets.beside_cells import answer_beside_cells
from mlxbench_kernel.widgets.controls import button, close_inside, row, say, sure
from mlxbench_kernel.widgets.generated import figures_line
from mlxbench_kernel.widgets.threads import Commands, Redraws, one_line


def _shown_here(_found: Generated, _status: str) -> None:
    """In place of the output of a cell: the view shows what comes."""


class ChatView(ui.VBox):  # type: ignore[misc]
    """A conversation as bubbles, an entry, and what the sampling takes.

    Answers come on a thread of its own, so the notebook's kernel is free meanwhile; `close` ends
    that. What is said by code (``view.chat.say``) is shown too.

    Parameters
    ----------
    chat
        What is shown and gone on with.

    Attributes
    ----------
    chat : Conversation
        As given.
    """

    def __init__(self, chat: Conversation) -> None:
        self.chat = chat
        self.page = page.ChatPage()
        self.page.on_msg(self._key)
        self.settings = Sampling(chat)
        self.said, self.answer, self.line, self.error = (ui.HTML() for _ in range(4))
        self.entry = ui.Textarea(
            placeholder="Say something. Enter sends it, Shift+Enter begins a new line", rows=2
        )
        self.entry.add_class("mlxbench-chat-entry")
        self.entry.observe(self._typed, "value")
        self._taken = ""  # what was in the entry, until the browser says that it has another text
        self.send = button("Send", lambda: self._say(self.entry.value), "paper-plane")
        self.send.button_style = "primary"
        self.stop = button("Stop", self._stop, "stop", "Stop the answer; the text so far stays")
        self.again = button("Regenerate", self._again, "refresh", "Have the last answer anew")
        self.back = button("Undo", self._undo, "undo", "Take the last question back into the entry")
        self.clear = sure("Clear", self._clear, "trash", "Begin anew, with the same system prompt")
        log = ui.VBox([self.said, self.answer])
        log.add_class("mlxbench-chat-log")
        buttons = row(self.send, self.stop, self.again, self.back, self.clear)
        super().__init__(
            [self.page, self.settings.widget, log, self.line, self.error, self.entry, buttons]
        )
        self.add_class("mlxbench-chat")
        answer_beside_cells(self)
        self._error = ""
        self._working = False  # from a press to the end of what it began
        self._commands = Commands(self._changed)
        self._redraws = Redraws(self._draw, lambda: True)
        self._unwatch: Callable[[], None] | None = chat.watch(self._changed)
        self._changed()

    def __repr__(self) -> str:
        return repr(self.chat)

    def close(self) -> None:
        """Stop an answer that is on its way, and take the view away from where it is shown."""
        if self._unwatch is None:
            return
        self._unwatch()
        self._unwatch = None
        self.chat.stop()
        self._commands.close()
        self._redraws.close()
        close_inside(self)
        super().close()

    # -- what is pressed -------------------------------------------------------------

    def _key(self, _page: object, content: object, _buffers: object) -> None:
        if isinstance(content, dict) and content.get("event") == "send":
            self._say(str(content.get("text", "")))

    def _say(self, text: str) -> None:
        if self._is_busy() or not text.strip():
            return
        self.entry.value = text  # the browser may not have sent all of it
        self.entry.value = ""
        self._taken = text

        asked = self._asked()

        def command() -> None:
            try:
                self.settings.apply()
                self.chat.say(text, _shown_here)
            finally:
                if self._asked() == asked and not self.entry.value:
                    self._fill(text)  # nothing came of it: it can be sent again

        self._ask("answering", command)

    def _typed(self, change: dict[str, Any]) -> None:
        """Empty the entry where its text comes late: the browser waits for an idle kernel."""
        taken, self._taken = self._taken, ""
        if change["new"] and change["new"] == taken:
            self.entry.value = ""

    def _fill(self, text: str) -> None:
        self._taken = ""
        self.entry.value = text

    def _again(self) -> None:
        def command() -> None:
            self.settings.apply()
            self.chat.regenerate(_shown_here)

        self._ask("answering", command)

    def _undo(self) -> None:
        def command() -> None:
            question = self.chat.undo()
            if not self.entry.value:
                self._fill(question)

        self._ask("going back", command)

    def _clear(self) -> None:
        self._ask("beginning anew", self.chat.clear)

    def _stop(self) -> None:
        self.chat.stop()

    def _asked(self) -> int:
        """How many questions there are."""
        return sum(each["role"] == "user" for each in self.chat.messages)

    def _is_busy(self) -> bool:
        return self._working or bool(self.chat.asking)

    def _ask(self, doing: str, command: Callable[[], object]) -> None:
        if self._is_busy():
            return
        self._working = True

        def unless_stopped() -> None:
            try:
                command()
            except GivenUp:
                pass  # somebody has pressed Stop, and sees what came of it
            finally:
                self._working = False

        self._commands.do(doing, unless_stopped)

    # -- drawing ---------------------------------------------------------------------

    def _changed(self) -> None:
        self._redraws.ask()

    def _draw(self) -> bool:
        """Draw what changed; nothing is left for later."""
        try:
            self._show()
            self._error = ""
        except Exception as error:  # else it would stand still, and nobody knew why
            self._error = f"the chat could not be drawn: {one_line(error)}"
        say(self.error, page.error_line(self._commands.error or self._error))
        return False

    def _show(self) -> None:
        chat, asking = self.chat, self.chat.asking
        messages = asking or chat.messages
        say(self.said, page.said(messages))
        say(self.answer, page.coming(chat.so_far.text) if asking else "")
        say(self.line, page.line(self._status()))
        busy = self._is_busy()
        asked = any(each["role"] == "user" for each in messages)
        for part, off in (
            (self.send, busy),
            (self.stop, not asking or chat.stopping),
            (self.again, busy or not asked),
            (self.back, busy or not asked),
            (self.clear, busy or not asked),
        ):
            if part.disabled != off:
                part.disabled = off

    def _status(self) -> str:
        """What is going on, or what the last answer took."""
        chat = self.chat
        if not chat.asking:
            # Beside an error they would be of another answer than what was asked for.
            return figures_line(chat.last) if chat.last and not self._commands.error else ""
        if chat.stopping:
            return "stopping …"
        told = chat.so_far.figures or chat.so_far.reading[1]
        doing = "" if told else "reading what was said …"
        return " · ".join(each for each in (doing, figures_line(chat.so_far), chat.status) if each)


class Sampling:
    """The system prompt and what the sampling takes, folded away at first.

    Parameters
    ----------
    chat
        Whose.
    """

    def __init__(self, chat: Conversation) -> None:
        self._chat = chat
        wide = {"description_width": "initial"}
        self.system = ui.Textarea(
            value=chat.system, rows=2, layout={"width": "auto"},
            placeholder="System prompt: what the model is told before all else",
        )  # fmt: skip
        self.temp = ui.BoundedFloatText(
            value=chat.options.get("temp", 0.0), min=0.0, max=10.0, step=0.1, style=wide,
            description="temperature", layout={"width": "12em"},
            tooltip="0 takes the likeliest token each time",
        )  # fmt: skip
        self.top_p = ui.BoundedFloatText(
            value=chat.options.get("top_p", 1.0), min=0.0, max=1.0, step=0.05, style=wide,
            description="top-p", layout={"width": "9em"},
            tooltip="of the likeliest tokens, as many as have this probability together",
        )  # fmt: skip
        self.most = ui.BoundedIntText(
            value=chat.max_tokens, min=1, max=10**6, style=wide,
            description="max tokens", layout={"width": "12em"}, tooltip="of an answer, at most",
        )  # fmt: skip
        self.seed = ui.Text(
            value="" if chat.seed is None else str(chat.seed), placeholder="random", style=wide,
            description="seed", layout={"width": "10em"},
            tooltip="the same seed gives the same answer; empty for another each time",
        )  # fmt: skip
        fields = row(self.temp, self.top_p, self.most, self.seed)
        self.widget = ui.Accordion(
            [ui.VBox([self.system, fields])],
            titles=["System prompt and sampling"],
            selected_index=0 if chat.system else None,
        )

    def apply(self) -> None:
        """Have the next answer be made with what stands here.

        Raises
        ------
        UsageError
            The seed is no number.
        """
        text = self.seed.value.strip()
        if text and not text.isdigit():
            raise UsageError(f"seed: {text!r} is no whole number: type one, or leave it empty")
        chat = self._chat
        chat.seed = int(text) if text else None
        chat.max_tokens = self.most.value
        chat.options |= {"temp": self.temp.value, "top_p": self.top_p.value}
        if chat.system != self.system.value.strip():
            chat.system = self.system.value.strip()
