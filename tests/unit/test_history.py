"""What a rank keeps of its cells' output, and what it drops."""

from __future__ import annotations

from typing import Any

import pytest

from mlxbench_kernel.rank.history import SENT, History


class Session:
    """As much of a session as is followed."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, stream: Any, message: Any, content: Any = None, parent: Any = None) -> None:
        self.sent.append(message)


class Rank:
    """A history with the messages of cells, as a kernel sends them."""

    def __init__(self, **limits: int) -> None:
        self.history = History(**limits)
        self.session = Session()
        self.history.follow(self.session)
        self.count = 0

    def cell(self, code: str = "1") -> dict[str, Any]:
        self.count += 1
        header = {"msg_id": f"cell-{self.count}"}
        parent = {"header": header, "metadata": {SENT: float(self.count)}}
        self.session.send(None, "execute_input", {"code": code}, parent)
        return parent

    def print(self, cell: dict[str, Any], text: str, name: str = "stdout") -> None:
        message = {
            "header": {"msg_type": "stream"},
            "parent_header": cell["header"],
            "content": {"name": name, "text": text},
        }
        self.session.send(None, message)

    def show(self, cell: dict[str, Any], text: str, kind: str = "display_data") -> None:
        content = {"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": "a"}}
        self.session.send(None, kind, content, cell["header"])

    def texts(self) -> list[list[str]]:
        """Of each cell what it put out, as text."""
        return [
            [c["text"] if kind == "stream" else c["data"]["text/plain"] for kind, c in messages]
            for messages in (cell["messages"] for cell in self.history.last())
        ]


@pytest.fixture
def rank() -> Rank:
    return Rank()


def test_streams_are_merged_and_displays_are_whole(rank: Rank) -> None:
    cell = rank.cell("train()")
    rank.print(cell, "a")
    rank.print(cell, "b\n")
    rank.print(cell, "oh", "stderr")
    rank.show(cell, "plot")
    rank.print(cell, "c")
    (kept,) = rank.history.last()
    assert rank.texts() == [["ab\n", "oh", "plot", "c"]]
    assert (kept["code"], kept["sent"], kept["running"], kept["dropped"]) == ("train()", 1, True, 0)
    rank.session.send(None, "execute_reply", {"status": "ok", "payload": []}, cell)
    assert not rank.history.last()[0]["running"]
    assert rank.session.sent[0] == "execute_input" and len(rank.session.sent) == 7


def test_output_goes_to_its_cell_also_when_it_comes_late(rank: Rank) -> None:
    first, second = rank.cell(), rank.cell()
    rank.print(second, "second")
    rank.print(first, "late")
    rank.session.send(None, "stream", {"name": "stdout", "text": "of no cell"}, {})
    assert rank.texts() == [["late"], ["second"]]
    assert [cell["sent"] for cell in rank.history.last(1)] == [2]


def test_only_the_last_cells_are_kept() -> None:
    rank = Rank(cells=3)
    for number in range(10):
        rank.print(rank.cell(str(number)), "x" * 100)
    assert [cell["code"] for cell in rank.history.last()] == ["7", "8", "9"]
    assert rank.history._size == 300


def test_the_oldest_text_goes_first_and_is_counted() -> None:
    rank = Rank(characters=10)
    first = rank.cell()
    rank.print(first, "abcdef")
    second = rank.cell()
    rank.print(second, "ghijkl")
    assert rank.texts() == [["cdef"], ["ghijkl"]]
    rank.print(second, "m" * 25)
    assert rank.texts() == [[], ["m" * 10]]
    assert [cell["dropped"] for cell in rank.history.last()] == [6, 21]


def test_many_short_messages_are_joined_and_bounded(rank: Rank) -> None:
    cell = rank.cell()
    for _ in range(10_000):
        rank.print(cell, "x")
    (item,) = rank.history._cells["cell-1"].items
    assert len(item.pieces) == 3 and rank.texts() == [["x" * 10_000]]
    for _ in range(5_000):
        rank.print(cell, "y", "stderr")
        rank.print(cell, "z")
    kept = rank.history.last()[0]
    assert len(kept["messages"]) == 5_000 and kept["dropped"] == 10_000 + 5_000
    assert rank.history._size == 5_000


def test_a_display_is_dropped_as_a_whole() -> None:
    rank = Rank(characters=20)
    cell = rank.cell()
    rank.show(cell, "p" * 100)
    rank.print(cell, "text")
    assert rank.texts() == [["text"]] and rank.history.last()[0]["dropped"] == 100


def test_of_many_updates_of_a_display_the_last_is_kept(rank: Rank) -> None:
    cell = rank.cell()
    rank.show(cell, "0 %")
    for percent in range(1, 101):
        rank.show(cell, f"{percent} %", "update_display_data")
    assert rank.texts() == [["0 %", "100 %"]]


def test_clear_output_clears_at_once_or_with_the_next_output(rank: Rank) -> None:
    cell = rank.cell()
    rank.print(cell, "old")
    rank.session.send(None, "clear_output", {"wait": True}, cell)
    assert rank.texts() == [["old"]]
    rank.print(cell, "new")
    assert rank.texts() == [["new"]]
    rank.session.send(None, "clear_output", {"wait": False}, cell)
    assert rank.texts() == [[]] and rank.history._size == 0


def test_what_a_question_mark_shows_is_kept(rank: Rank) -> None:
    cell = rank.cell("mx.eval?")
    page = {"source": "page", "data": {"text/plain": "Evaluate"}}
    rank.session.send(None, "execute_reply", {"status": "ok", "payload": [page]}, cell)
    assert rank.history.last()[0]["messages"] == [("page", {"data": page["data"]})]
