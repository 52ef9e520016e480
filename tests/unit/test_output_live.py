"""Presenters, against the messages that a front-end or a terminal gets from them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from queue import Empty

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from mlxbench_kernel.kernel.output import Append, CellOutput, InPlace, choose_presenter
from mlxbench_kernel.kernel.output.ansi import strip
from mlxbench_kernel.kernel.output.blocks import BLOCK_LINES
from mlxbench_kernel.kernel.output.screen import Screen

PLOT = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}


class Clock:
    """A clock that goes on when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FrontEnd:
    """Keeps displays as a notebook does."""

    def __init__(self) -> None:
        self.displays: dict[str, dict] = {}
        self.messages = 0

    def publish(self, data, metadata, display_id, update):
        assert (display_id in self.displays) == update, "an update needs a display, and only it"
        self.displays[display_id] = data
        self.messages += 1

    @property
    def lines(self) -> list[str]:
        lines: list[str] = []
        for data in self.displays.values():
            if "image/png" in data:
                lines.append(f"<{data['image/png']}>")
            elif data["text/plain"]:
                lines += strip(data["text/plain"]).split("\n")
        return lines


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def front() -> FrontEnd:
    return FrontEnd()


@pytest.fixture
def output(monkeypatch, clock) -> CellOutput:
    monkeypatch.setattr("mlxbench_kernel.kernel.output.model.time.monotonic", clock)
    return CellOutput([0, 1], 2)


# In place


@pytest.fixture
def notebook(output, front, clock) -> InPlace:
    return InPlace(output, front.publish, clock=clock)


def test_what_changes_is_changed_in_place(notebook, output, front, clock):
    output.stream(0, "stdout", "hello\n")
    notebook.refresh()
    assert front.lines == ["[0]   hello"]
    output.stream(1, "stdout", "hello\nmore")
    clock.now += 0.2
    notebook.refresh()
    assert front.lines == ["[0-1] hello", "[1]   more"]
    assert len(front.displays) == 1


def test_redraws_come_at_most_ten_times_a_second_and_only_for_changes(
    notebook, output, front, clock
):
    for step in range(1000):
        output.stream(0, "stderr", f"\rstep {step}")
        clock.now += 0.01
        notebook.refresh()
    assert 90 <= front.messages <= 110
    notebook.finish()
    assert front.lines == ["[0]   step 999"]
    sent = front.messages
    for _ in range(100):
        clock.now += 1
        notebook.refresh()
    notebook.finish()
    assert front.messages == sent


def test_plots_stand_in_order_between_blocks_of_text(notebook, output, front, clock):
    for rank in (0, 1):
        output.stream(rank, "stdout", "before\n")
        output.display(rank, {**PLOT, "image/png": f"plot {rank}"})
        output.stream(rank, "stdout", "after\n")
        clock.now += 1
        notebook.refresh()
    notebook.finish()
    assert front.lines == [
        "[0-1] before",
        "[0]",
        "<plot 0>",
        "[1]",
        "<plot 1>",
        "[0-1] after",
    ]
    rich = [data for data in front.displays.values() if "image/png" in data]
    assert all(set(data) == {"image/png", "text/plain"} for data in rich)


def test_a_closed_block_still_gets_the_labels_of_late_ranks(notebook, output, front, clock):
    output.stream(0, "stdout", "before\n")
    output.display(0, PLOT)
    notebook.refresh()
    output.stream(1, "stdout", "before\n")
    clock.now += 1
    notebook.refresh()
    assert front.lines == ["[0-1] before", "[0]", f"<{PLOT['image/png']}>"]


def test_a_long_output_sends_only_its_last_block_again(notebook, output, front, clock):
    for step in range(10 * BLOCK_LINES):
        output.stream(0, "stdout", f"step {step}\n")
    notebook.refresh()
    assert len(front.displays) == 10
    output.stream(0, "stdout", "one more\n")
    clock.now += 10
    front.messages = 0
    notebook.refresh()
    assert front.messages == 1
    assert len(front.lines) == 10 * BLOCK_LINES + 1


def test_large_redraws_come_more_rarely(notebook, output, front, clock):
    for step in range(200):
        output.stream(0, "stdout", f"{step} " + "x" * 10_000 + "\n")
    notebook.refresh()
    front.messages = 0
    output.stream(0, "stdout", "more\n")
    clock.now += 0.5
    notebook.refresh()
    assert front.messages == 0, "two million characters take a second"
    clock.now += 0.6
    notebook.refresh()
    assert front.messages == 1


def test_nothing_is_rendered_while_nothing_changes(notebook, output, clock, monkeypatch):
    output.stream(0, "stdout", "hello\n")
    notebook.refresh()
    monkeypatch.setattr("mlxbench_kernel.kernel.output.live.blocks", None)
    for _ in range(10):
        clock.now += 1
        notebook.refresh()


def test_cleared_output_disappears(notebook, output, front, clock):
    output.stream(0, "stdout", "a\n")
    output.display(0, PLOT)
    output.stream(0, "stdout", "b\n")
    notebook.refresh()
    output.clear(0)
    clock.now += 1
    notebook.refresh()
    assert front.lines == []


def test_the_status_and_who_raised_stand_below_while_the_cell_runs(notebook, output, front, clock):
    output.stream(0, "stdout", "hello\n")
    output.error(1, "ZeroDivisionError", "division by zero", [])
    notebook.status_line = "waiting for rank 0 · 12 s"
    notebook.refresh()
    assert front.lines == [
        "[0]   hello",
        "[1]   raised ZeroDivisionError: division by zero",
        "waiting for rank 0 · 12 s",
    ]
    clock.now += 1
    notebook.refresh()
    assert front.lines[-1] == "waiting for rank 0 · 12 s"
    notebook.finish()
    assert front.lines == ["[0]   hello"]


def test_what_comes_after_the_end_is_shown_by_another_finish(notebook, output, front):
    output.stream(0, "stdout", "hello\n")
    notebook.finish()
    output.stream(0, "stdout", "from a thread\n")
    notebook.finish()
    assert front.lines == ["[0]   hello", "[0]   from a thread"]


# In a terminal


class Terminal(FrontEnd):
    """Shows what is written as a terminal does."""

    def __init__(self) -> None:
        super().__init__()
        self.screen = Screen()
        self.rows: list[str] = []

    def write(self, text: str) -> None:
        self.rows += map(strip, self.screen.feed(text))

    def publish(self, data, metadata, display_id, update):
        assert not update
        self.write(f"<{data['image/png']}>\n")

    @property
    def last(self) -> str:
        return strip("".join(self.screen.live()))


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def printed(output, terminal, clock) -> Append:
    return Append(output, terminal.publish, clock, write=terminal.write)


def test_a_line_is_printed_as_soon_as_all_ranks_have_said_it(printed, output, terminal, clock):
    output.stream(0, "stdout", "hello\n")
    printed.refresh()
    assert terminal.rows == []
    output.stream(1, "stdout", "hello\n")
    clock.now += 0.1
    printed.refresh()
    assert terminal.rows == ["[0-1] hello"]


def test_a_line_waits_a_third_of_a_second_and_stragglers_are_printed_again(
    printed, output, terminal, clock
):
    output.stream(0, "stdout", "hello\n")
    clock.now += 0.2
    printed.refresh()
    assert terminal.rows == []
    clock.now += 0.2
    printed.refresh()
    assert terminal.rows == ["[0]   hello"]
    output.stream(1, "stdout", "hello\n")
    clock.now += 0.2
    printed.refresh()
    printed.finish()
    assert terminal.rows == ["[0]   hello", "[1]   hello"]


def test_a_line_that_others_have_passed_or_will_never_say_does_not_wait(
    printed, output, terminal, clock
):
    output.stream(0, "stdout", "mine\nboth\n")
    output.stream(1, "stdout", "both\n")
    clock.now += 0.1
    printed.refresh()
    assert terminal.rows == ["[0]   mine", "[0-1] both"]
    output.done(1)
    output.stream(0, "stdout", "alone now\n")
    clock.now += 0.1
    printed.refresh()
    assert terminal.rows[2:] == ["[0]   alone now"]


def test_progress_is_one_line_that_is_rewritten(printed, output, terminal, clock):
    for step in range(3):
        for rank in (0, 1):
            output.stream(rank, "stderr", f"\r\x1b[Krank {rank}: {step}/2{'.' * (5 - step)}")
        clock.now += 0.1
        printed.refresh()
        assert terminal.last == f"[0]   rank 0: {step}/2{'.' * (5 - step)} (+1)"
    assert terminal.rows == []
    output.stream(0, "stderr", "\n")
    output.stream(1, "stderr", "\n")
    printed.finish()
    assert terminal.rows == ["[0]   rank 0: 2/2...", "[1]   rank 1: 2/2..."]
    assert terminal.last == ""


def test_the_last_line_never_wraps_and_lines_are_printed_above_it(printed, output, terminal, clock):
    output.stream(0, "stderr", "\rbar " + "#" * 200)
    clock.now += 0.1
    printed.status_line = "waiting"
    printed.refresh()
    assert len(terminal.last) == 79
    output.stream(0, "stdout", "hello\n")
    output.stream(1, "stdout", "hello\n")
    clock.now += 0.1
    printed.refresh()
    assert terminal.rows == ["[0-1] hello"]
    assert terminal.last.startswith("[0]   bar ###")


def test_plots_stand_under_their_label_in_a_terminal(printed, output, terminal):
    for rank in (0, 1):
        output.stream(rank, "stdout", "before\n")
        output.display(rank, PLOT)
        output.done(rank)
    printed.finish()
    assert terminal.rows == ["[0-1] before", "[0-1]", f"<{PLOT['image/png']}>"]


def test_an_updated_display_is_printed_in_its_last_state(printed, output, terminal, clock):
    ids = {"display_id": "bar"}
    output.display(0, {"text/plain": "0 %"}, {}, ids)
    clock.now += 0.5
    printed.refresh()
    for percent in (30, 60, 100):
        output.update(0, {"text/plain": f"{percent} %"}, {}, ids)
        clock.now += 0.5
        printed.refresh()
    printed.finish()
    assert terminal.rows == ["[0]   0 %", "[0]   100 %"]


def test_a_line_that_went_on_after_the_end_is_printed_whole(printed, output, terminal):
    output.stream(0, "stdout", "from a ")
    printed.finish()
    output.stream(0, "stdout", "thread\n")
    printed.finish()
    assert terminal.rows == ["[0]   from a", "[0]   from a thread"]


def test_a_flood_in_a_terminal_says_what_it_left_out(printed, output, terminal, clock):
    for start in range(0, 100_000, 10_000):
        text = "".join(f"step {step}\n" for step in range(start, start + 10_000))
        for rank in (0, 1):
            output.stream(rank, "stdout", text)
    clock.now += 1
    printed.refresh()
    printed.finish()
    assert sum("lines left out" in row for row in terminal.rows) == 1
    assert terminal.rows[-1] == "[0-1] step 99999"
    assert len(terminal.rows) < 10_000


def test_a_file_gets_no_escape_sequences_and_no_progress(monkeypatch, output, terminal):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    printed = Append.to_terminal(output, terminal.publish)
    output.stream(0, "stderr", "\rbar 1/2")
    printed.status_line = "waiting"
    printed.refresh()
    output.stream(0, "stderr", "\rbar 2/2\n")
    printed.finish()
    assert file.getvalue() == "[0]   bar 2/2\n"


# Which of them, in a real kernel

SHOW = """
from IPython import get_ipython
from mlxbench_kernel.kernel.output import CellOutput, choose_presenter
output = CellOutput([0, 1], 2)
presenter = choose_presenter(get_ipython(), output)
output.stream(0, "stdout", "hello\\n")
presenter.refresh()
output.stream(1, "stdout", "hello\\n")
output.display(1, {"text/html": "<b>bold</b>"})
presenter.finish()
"""


@pytest.fixture(scope="module")
def client() -> Iterator:
    manager, client = start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def published(client, metadata: dict, allow_stdin: bool) -> list[tuple[str, dict]]:
    """The output messages of a cell sent as some front-end sends it."""
    content = {"code": SHOW, "silent": False, "allow_stdin": allow_stdin}
    request = client.session.msg("execute_request", content, metadata=metadata)
    client.shell_channel.send(request)
    found = []
    while True:
        try:
            message = client.get_iopub_msg(timeout=60)
        except Empty:
            raise AssertionError("the kernel does not answer") from None
        if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] == "idle":
            return found
        if kind not in ("status", "execute_input"):
            found.append((kind, content))


@pytest.mark.parametrize(
    ("metadata", "allow_stdin"),
    [({"cellId": "a1", "deletedCells": []}, True), ({}, False)],
    ids=["JupyterLab, Notebook, VS Code", "nbclient"],
)
def test_a_notebook_front_end_gets_displays_that_change(client, metadata, allow_stdin):
    (first, *more) = published(client, metadata, allow_stdin)
    assert first[0] == "display_data"
    assert strip(first[1]["data"]["text/plain"]) == "[0]   hello"
    assert [kind for kind, _ in more] == ["update_display_data", "display_data"]
    assert more[0][1]["transient"] == first[1]["transient"]
    assert strip(more[0][1]["data"]["text/plain"]) == "[0-1] hello\n[1]"
    assert more[1][1]["data"] == {"text/html": "<b>bold</b>"}


def test_jupyter_console_gets_text_that_stays(client):
    messages = published(client, {}, allow_stdin=True)
    assert {kind for kind, _ in messages} == {"stream", "display_data"}
    text = "".join(content["text"] for kind, content in messages if kind == "stream")
    assert strip(text) == "[0-1] hello\n[1]\n"


def test_nbclient_saves_the_final_state():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SHOW)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    text, rich = notebook.cells[0].outputs
    assert strip(text["data"]["text/plain"]) == "[0-1] hello\n[1]"
    assert rich["data"] == {"text/html": "<b>bold</b>"}


def test_ipython_in_a_terminal_gets_text(output, capsys):
    class Shell:
        display_pub = None

    presenter = choose_presenter(Shell(), output)
    output.stream(0, "stdout", "hello\n")
    presenter.finish()
    assert capsys.readouterr().out == "[0]   hello\n"
