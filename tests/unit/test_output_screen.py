"""What streams with carriage returns, cursor movement and colours leave on the screen."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm

from mlxbench_kernel.kernel.output.ansi import strip
from mlxbench_kernel.kernel.output.screen import LINE_LIMIT, Screen


def screen_of(text: str, size: int | None = None) -> list[str]:
    """All rows after feeding text in pieces of a size, finished and unfinished."""
    screen = Screen()
    rows: list[str] = []
    for start in range(0, len(text), size or len(text)):
        lines = screen.feed(text[start : start + size] if size else text)
        del rows[len(rows) - screen.reclaimed :]
        rows += lines
    return rows + screen.live()


def bars(run, **options) -> str:
    """What tqdm really writes."""
    file = io.StringIO()
    options = {"file": file, "mininterval": 0, "miniters": 1, "ncols": 70} | options
    run(lambda iterable, **more: tqdm(iterable, **(options | more)))
    return file.getvalue()


def nested(bar, leave=False):
    for _ in bar(range(3), desc="outer"):
        for _ in bar(range(2), desc="inner", leave=leave):
            pass


def test_lines_are_finished_by_their_newline_and_the_rest_is_live():
    screen = Screen()
    assert screen.feed("one\ntwo\nthr") == ["one", "two"]
    assert screen.live() == ["thr"]
    assert screen.feed("ee\n\n") == ["three", ""]
    assert screen.live() == []


def test_a_bar_redrawn_a_thousand_times_is_one_line():
    text = bars(lambda bar: [None for _ in bar(range(1000), desc="train")])
    assert text.count("\r") >= 1000
    (line,) = screen_of(text)
    assert line.startswith("train: 100%|")
    assert "1000/1000" in line


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7, 64])
def test_nested_bars_end_as_their_outer_bar_however_the_stream_is_cut(size):
    (line,) = screen_of(bars(nested), size)
    assert line.startswith("outer: 100%|")


@pytest.mark.parametrize("size", [None, 1, 5])
def test_nested_bars_that_stay_leave_one_line_each(size):
    rows = screen_of(bars(lambda bar: nested(bar, leave=True)), size)
    assert [row.split("|")[0] for row in rows] == ["inner: 100%"] * 3 + ["outer: 100%"]


def test_three_bars_inside_each_other_are_three_live_lines_while_they_run():
    seen = []
    file = io.StringIO()

    def look():
        screen = Screen()
        screen.feed(file.getvalue())
        seen.append([row.split(":")[0] for row in screen.live()])

    options = {"file": file, "mininterval": 0, "miniters": 1, "leave": False}
    for _ in tqdm(range(2), desc="a", **options):
        for _ in tqdm(range(2), desc="b", **options):
            for _ in tqdm(range(2), desc="c", **options):
                look()
    assert seen == [["a", "b", "c"]] * 8


def test_a_bar_above_another_stays_live_once_the_cursor_was_seen_to_come_back():
    screen = Screen()
    screen.feed("\router 1\n\rinner 1\x1b[A")
    assert screen.feed("\n\rinner 2") == []
    assert screen.live() == ["outer 1", "inner 2"]
    assert screen.feed("\x1b[A\router 2") == []
    assert screen.live() == ["outer 2", "inner 2"]


def test_text_written_beside_a_bar_stands_above_it():
    file = io.StringIO()
    for step in tqdm(range(3), desc="bar", file=file, mininterval=0, miniters=1):
        tqdm.write(f"step {step}", file=file)
    rows = screen_of(file.getvalue())
    assert rows[:3] == ["step 0", "step 1", "step 2"]
    assert rows[3].startswith("bar: 100%")
    assert len(rows) == 4


def test_a_coloured_bar_keeps_its_colours():
    text = bars(lambda bar: [None for _ in bar(range(4))], colour="green")
    (line,) = screen_of(text)
    assert "\x1b[32m" in line
    assert strip(line).startswith("100%|")


def test_colours_go_on_to_the_next_line_and_each_line_stands_for_itself():
    assert screen_of("\x1b[1;31mone\ntwo\x1b[0m three\n") == [
        "\x1b[1;31mone\x1b[0m",
        "\x1b[1;31mtwo\x1b[0m three",
    ]
    assert screen_of("\x1b[31ma\x1b[39mb\n") == ["\x1b[31ma\x1b[0mb"]
    assert screen_of("\x1b[38;5;28;1mx\x1b[22my\n") == [
        "\x1b[38;5;28;1mx\x1b[0m\x1b[38;5;28my\x1b[0m"
    ]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("12345\rab", ["ab345"]),
        ("abc\b\bX", ["aXc"]),
        ("long line\r\x1b[Kshort", ["short"]),
        ("long line\x1b[2K\rshort", ["short"]),
        ("windows\r\nlines\r\n", ["windows", "lines"]),
        ("1\n2\n3\x1b[2Ax\x1b[1Bz", ["1x", "2 z", "3"]),
        ("a\nb\nc\x1b[2F\x1b[Jnew", ["new"]),
        ("\x1b[?25lspinner\x1b[?25h", ["spinner"]),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", ["link"]),
        ("bell\a\x00!", ["bell!"]),
        ("tab\tstays", ["tab\tstays"]),
        ("a\x1b[3Cb\x1b[2Dc\x1b[Gd", ["d  cb"]),
    ],
)
def test_control_sequences_do_what_a_terminal_does(text, rows):
    for size in (None, 1):
        assert screen_of(text, size) == rows


def test_an_endless_line_is_bounded_and_says_what_is_missing():
    screen = Screen()
    for _ in range(100):
        screen.feed("." * 10_000)
    (line,) = screen.feed("end\n")
    assert len(line) < LINE_LIMIT + 100
    assert line.endswith("...end")
    assert f"{1_000_003 - LINE_LIMIT:_} characters left out".replace("_", " ") in strip(line)
    (line,) = Screen().feed("x" * 3_000_000 + "\n")
    assert len(line) < LINE_LIMIT + 100


def test_a_hundred_thousand_redraws_in_one_piece_show_the_last():
    text = "".join(f"\rloss {step:06d}" for step in range(100_000))
    assert screen_of(text + "\n") == ["loss 099999"]
