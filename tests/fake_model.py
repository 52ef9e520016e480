"""A language model that says what a test wants, on ranks that are not there."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from mlxbench_kernel.remote.language_model import Generated
from mlxbench_kernel.widgets.language_model import LanguageModel


class FakeModel(LanguageModel):
    """Answers with the next of its texts, a word at a time.

    Attributes
    ----------
    answers
        Texts, or exceptions to be raised after `spoken` words.
    asked
        Prompt, tokens at most and options of each call.
    going
        While it is not set, the answer waits after its first word, as a rank that computes.
    """

    def __init__(self, *answers: str | Exception, template: bool = True) -> None:
        cluster: Any = SimpleNamespace(size=2, client=SimpleNamespace(closed=False))
        super().__init__(cluster, "lm", "/models/fake")
        self.architecture, self.shard = "llama", "tensor"
        part = {"nbytes": 10**6, "context": 100, "has_chat_template": template}
        self.parts = {0: part, 1: part}
        self.answers = list(answers)
        self.asked: list[tuple[Any, int, dict[str, Any]]] = []
        self.going, self.begun = threading.Event(), threading.Event()
        self.going.set()

    def halt(self) -> bool:
        return False

    def generate_on_ranks(  # type: ignore[override]
        self, prompt: Any, max_tokens: int = 256, *, heard: Any, show: Any, **options: Any
    ) -> Generated:
        self.asked.append((prompt, max_tokens, options))
        answer = self.answers.pop(0)
        failing = isinstance(answer, Exception)
        words = ["half", " an", " answer"] if failing else str(answer).split(" ")
        text = ""
        for number, word in enumerate(words):
            text += word if not number or failing else f" {word}"
            heard(made(text, number + 1))
            show("")
            self.begun.set()
            while not self.going.wait(0.01):
                show("")
        if isinstance(answer, Exception):
            raise answer
        found = made(text, len(words), "stop")
        heard(found)
        return found


def made(text: str, tokens: int, finish: str = "") -> Generated:
    """So much of an answer, with figures."""
    figures = {
        "prompt_tokens": 12, "reused": 8, "tokens": tokens, "drafted": 0, "first": 0.05,
        "prompt_rate": 240.0, "rate": 20.0,
    }  # fmt: skip
    rank = {"kv_bytes": 10**6, "active": 10**7, "peak": 10**7, "collectives": 0.25}
    return Generated(text, [1] * tokens, finish, figures, {0: rank, 1: rank})
