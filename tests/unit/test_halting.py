"""Two ranks that are at different tokens end after the same one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mlxbench_kernel.models import generate, halting, load
from mlxbench_kernel.models.generating import Generation
from mlxbench_kernel.models.halting import ASK, END, Halt
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.rank.answers import ANSWERS


def test_the_one_that_is_behind_goes_on_to_where_the_other_waits() -> None:
    ahead, behind = Halt(), Halt()
    assert not any(ahead(count) for count in range(1, 6))
    assert not any(behind(count) for count in range(1, 4))
    limits = ahead.ask(), behind.ask()
    assert limits == (6, 4) and ahead.ask() == 6
    ended: dict[str, int] = {}

    def work(name: str, halt: Halt, count: int) -> None:
        while not halt(count):
            count += 1
        ended[name] = count

    threads = [
        threading.Thread(target=work, args=("ahead", ahead, 6)),
        threading.Thread(target=work, args=("behind", behind, 4)),
    ]
    for thread in threads:
        thread.start()
    for halt in (ahead, behind):
        halt.end(max(limits))
    for thread in threads:
        thread.join(20)
    assert ended == {"ahead": 6, "behind": 6}


def test_a_rank_that_nobody_tells_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halting, "WAIT_SECONDS", 0.01)
    halt = Halt()
    halt.ask()
    assert not any(halt(count) for count in range(1, 50))


def test_what_was_ended_keeps_its_cache(tmp_path: Path) -> None:
    part = load(make_small_model(tmp_path / "llama"))
    with Halt() as halt:
        made = Generation(part, "The quick", 50, keep="chat", halt=halt)
        for piece in made:
            if piece.tokens == 5:
                ANSWERS[END](ANSWERS[ASK]() + 2)
    assert len(made.found) == 7 and ASK not in ANSWERS
    tokens, caches = part.caches["chat"]
    assert tokens == [*made.prompt_tokens, *made.found][: caches[0].offset]
    again = list(Generation(part, [*made.prompt_tokens, *made.found], 6, keep="chat"))
    assert again[0].reused >= len(made.prompt_tokens) + 5
    alone = "".join(piece.text for piece in again)
    assert alone == generate(part, [*made.prompt_tokens, *made.found], 6)
