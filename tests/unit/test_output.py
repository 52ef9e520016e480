"""A cell's output on several ranks, as its reader sees it."""

from __future__ import annotations

import io
import random
import threading

import pytest
from tqdm import tqdm

from mlxbench_kernel.kernel.output import CellOutput, format_ranks
from mlxbench_kernel.kernel.output.ansi import BLUE, GRAY, ORANGE, strip
from mlxbench_kernel.kernel.output.blocks import blocks

PLOT = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}


def shown(output: CellOutput, final: bool = True) -> list[str]:
    """The lines that a person reads; ``<type/of bundle>`` for what is not text."""
    lines: list[str] = []
    for block in blocks(output, final):
        text = block.data["text/plain"] if set(block.data) == {"text/plain"} else None
        lines += [f"<{sorted(block.data)[0]}>"] if text is None else strip(text).split("\n")
    return lines


def say(output: CellOutput, rank: int, *lines: str, name: str = "stdout") -> None:
    output.stream(rank, name, "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([0, 1, 2, 5], "0-2,5"), ([3], "3"), ([7, 6, 0, 6], "0,6-7"), (range(16), "0-15"), ([], "")],
)
def test_ranks_are_written_as_ranges(ranks, text):
    assert format_ranks(ranks) == text


# What ranks say alike


def test_what_all_ranks_say_stands_once_and_what_differs_per_rank():
    output = CellOutput(range(4), 4)
    for rank in (2, 0, 3, 1):
        say(output, rank, "loading", f"shard {min(rank, 2)}", "ready")
    assert shown(output) == [
        "[0-3] loading",
        "[0]   shard 0",
        "[1]   shard 1",
        "[2-3] shard 2",
        "[0-3] ready",
    ]


def test_ranks_stand_in_their_order_whoever_came_first():
    output = CellOutput(range(3), 3)
    say(output, 2, "2: one", "2: two")
    output.stream(1, "stdout", "1: unfinished")
    say(output, 0, "0: one")
    output.result(0, {"text/plain": "value"})
    assert shown(output) == [
        "[2]   2: one",
        "[0]   0: one",
        "[1]   1: unfinished",
        "[2]   2: two",
        "[0]   value",
    ]


def test_help_that_differs_in_addresses_alone_stands_once():
    output = CellOutput([0, 1], 2)
    for rank, address in enumerate(("0x7f59f153df10", "0x7fc860129f10")):
        output.page(rank, {"text/plain": f"String form: <nb_func object at {address}>"})
    assert shown(output) == ["[0-1] String form: <nb_func object at 0x…>"]


@pytest.mark.parametrize("pieces", ["whole", "lines"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_line_of_one_rank_does_not_part_what_follows_whoever_comes_first(first, pieces):
    said = {0: ["loading", "only here", "more here", "done"], 1: ["loading", "done"]}
    output = CellOutput([0, 1], 2)
    for rank in (first, 1 - first):
        for part in [said[rank]] if pieces == "whole" else [[line] for line in said[rank]]:
            say(output, rank, *part)
    assert shown(output) == ["[0-1] loading", "[0]   only here", "[0]   more here", "[0-1] done"]


def test_lines_of_every_step_stand_in_the_order_they_came():
    output = CellOutput([0, 1], 2)
    for step in range(2):
        for rank in (0, 1):
            say(output, rank, f"rank {rank} step {step}")
    assert [line.split(maxsplit=1)[1] for line in shown(output)] == [
        "rank 0 step 0",
        "rank 1 step 0",
        "rank 0 step 1",
        "rank 1 step 1",
    ]


def test_separators_keep_the_steps_of_ranks_together():
    output = CellOutput([0, 1], 2)
    for rank in (0, 1):
        say(output, rank, f"loss {rank}a", "----", f"loss {rank}b", "----")
    assert shown(output) == [
        "[0]   loss 0a",
        "[1]   loss 1a",
        "[0-1] ----",
        "[0]   loss 0b",
        "[1]   loss 1b",
        "[0-1] ----",
    ]


def test_a_line_said_twice_by_a_rank_stands_twice():
    output = CellOutput([0, 1], 2)
    say(output, 0, "tick", "tick")
    say(output, 1, "tick")
    assert shown(output) == ["[0-1] tick", "[0]   tick"]


def test_a_rank_does_not_jump_over_a_thousand_lines_to_join_one():
    output = CellOutput([0, 1], 2)
    say(output, 0, *map(str, range(1500)), "")
    say(output, 1, "", *map(str, range(1500)))
    assert shown(output)[0].strip() == "[1]"
    assert shown(output)[1:1501] == [f"[0-1] {number}" for number in range(1500)]


def test_stdout_and_stderr_do_not_merge_and_stderr_is_marked():
    output = CellOutput([0, 1], 2)
    say(output, 0, "same words")
    say(output, 1, "same words", name="stderr")
    assert shown(output) == ["[0]   same words", "[1]   same words"]
    (block,) = blocks(output, final=True)
    out, err = block.data["text/plain"].split("\n")
    assert out.startswith(BLUE)
    assert err.startswith(ORANGE)


def test_labels_are_gray_where_all_agree_and_missing_on_a_single_rank():
    output = CellOutput([0, 2], 4)
    say(output, 0, "hello")
    say(output, 2, "hello")
    (block,) = blocks(output, final=True)
    assert block.data["text/plain"].startswith(f"{GRAY}[0,2]")
    alone = CellOutput([0], 1)
    say(alone, 0, "hello")
    say(alone, 0, "careful", name="stderr")
    (block,) = blocks(alone, final=True)
    assert block.data["text/plain"].split("\n")[0] == "hello"
    assert block.data["text/plain"].split("\n")[1].startswith(ORANGE)


def test_whatever_ranks_say_in_whatever_order_each_ranks_own_text_is_kept():
    chance = random.Random(7)
    for _ in range(200):
        size = chance.randint(2, 5)
        script = [chance.choice(["", "a", "b", "loss {r}", "only {r} {i}", "step {i}"])
                  for _ in range(12)]  # fmt: skip
        said = {
            rank: [
                line.format(r=rank, i=i) for i, line in enumerate(script) if chance.random() < 0.9
            ]
            for rank in range(size)
        }
        output = CellOutput(range(size), size)
        left = {rank: "".join(f"{line}\n" for line in lines) for rank, lines in said.items()}
        while any(left.values()):
            rank = chance.choice([rank for rank, text in left.items() if text])
            count = chance.randint(1, 30)
            output.stream(rank, "stdout", left[rank][:count])
            left[rank] = left[rank][count:]
        items = output.merge.nodes.items
        assert [node.place for node in items] == sorted({node.place for node in items})
        for rank, lines in said.items():
            assert [node.text for node in items if node.mask >> rank & 1] == lines


def test_ranks_may_write_from_many_threads():
    output = CellOutput(range(8), 8)
    start = threading.Barrier(8)

    def write(rank: int) -> None:
        start.wait()
        for step in range(200):
            say(output, rank, f"step {step}")

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown(output) == [f"[0-7] step {step}" for step in range(200)]


# Lines that are not finished


def progress(rank: int, total: int = 5) -> list[str]:
    """The writes of a real tqdm bar."""
    writes: list[str] = []

    class File(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    options = {"mininterval": 0, "miniters": 1, "bar_format": "{desc} {n_fmt}/{total_fmt}"}
    for _ in tqdm(range(total), desc=f"train {rank}", file=File(), **options):
        pass
    return writes


def test_a_bar_per_rank_stays_one_line_each_and_in_its_place():
    output = CellOutput([0, 1], 2)
    for rank in (0, 1):
        for write in progress(rank)[:-4]:
            output.stream(rank, "stderr", write)
    assert [line[:11] for line in shown(output)] == ["[0]   train", "[1]   train"]
    say(output, 0, "epoch over")
    for rank in (0, 1):
        for write in progress(rank)[-4:]:
            output.stream(rank, "stderr", write)
    assert shown(output) == ["[0]   train 0 5/5", "[1]   train 1 5/5", "[0]   epoch over"]


def test_equal_bars_are_one_line_while_they_run_and_after():
    output = CellOutput([0, 1], 2)
    for write in progress(0):
        for rank in (0, 1):
            output.stream(rank, "stderr", write)
        assert len(shown(output)) <= 1
    assert shown(output) == ["[0-1] train 0 5/5"]


@pytest.mark.parametrize("size", [1, 4, 33, 1000])
def test_equal_nested_bars_end_as_one_line_however_they_are_cut(size):
    file = io.StringIO()
    options = {"file": file, "mininterval": 0, "miniters": 1}
    for _ in tqdm(range(3), desc="outer", **options):
        for _ in tqdm(range(2), desc="inner", leave=False, **options):
            pass
    text = file.getvalue()
    output = CellOutput([0, 1], 2)
    for rank in (0, 1):
        for start in range(0, len(text), size):
            output.stream(rank, "stderr", text[start : start + size])
    for rank in (0, 1):
        output.done(rank)
    (line,) = shown(output)
    assert line.startswith("[0-1] outer: 100%")


def test_a_partial_line_shows_at_once_and_merges_when_the_cell_is_done():
    output = CellOutput([0, 1], 2)
    output.stream(0, "stdout", "thinking")
    assert shown(output) == ["[0]   thinking"]
    output.stream(0, "stdout", " done")
    say(output, 1, "other")
    output.stream(1, "stdout", "thinking done")
    for rank in (0, 1):
        output.done(rank)
    assert shown(output) == ["[1]   other", "[0-1] thinking done"]


def test_the_beginning_of_a_line_stands_before_what_is_displayed_after_it():
    output = CellOutput([0], 2)
    output.stream(0, "stdout", "figure: ")
    output.display(0, PLOT)
    output.stream(0, "stdout", "that was it\n")
    assert shown(output) == ["[0] figure:", "[0]", "<image/png>", "[0] that was it"]


# Displays


def test_values_and_plots_merge_like_lines():
    output = CellOutput([0, 1], 2)
    for rank in (0, 1):
        output.display(rank, PLOT)
        say(output, rank, "after")
        output.result(rank, {"text/plain": "array([[1, 2],\n       [3, 4]])"})
    assert shown(output) == [
        "[0-1]",
        "<image/png>",
        "[0-1] after",
        "[0-1] array([[1, 2],",
        "             [3, 4]])",
    ]


def test_help_stands_once():
    output = CellOutput([0, 1], 2)
    for rank in (0, 1):
        output.page(rank, {"text/plain": "Signature: f(x)\nDocstring: nothing"})
    assert shown(output) == ["[0-1] Signature: f(x)", "      Docstring: nothing"]


def test_a_display_changes_in_place_for_the_rank_that_updates_it():
    output = CellOutput([0, 1, 2], 3)
    handle = {"display_id": "same on all ranks"}
    for rank in range(3):
        output.display(rank, {"text/plain": "0 %"}, {}, handle)
        say(output, rank, "training")
    output.update(2, {"text/plain": "50 %"}, {}, handle)
    assert shown(output) == ["[0-1] 0 %", "[2]   50 %", "[0-2] training"]
    output.update(0, {"text/plain": "50 %"}, {}, handle)
    assert shown(output) == ["[0,2] 50 %", "[1]   0 %", "[0-2] training"]
    output.update(1, {"text/plain": "50 %"}, {}, handle)
    assert shown(output) == ["[0-2] 50 %", "[0-2] training"]


def test_display_ids_belong_to_their_rank():
    output = CellOutput([0, 1], 2)
    output.display(0, {"text/plain": "mine"}, {}, {"display_id": "x"})
    output.update(1, {"text/plain": "not yours"}, {}, {"display_id": "x"})
    assert shown(output) == ["[0]   mine"]


def test_clearing_takes_away_only_what_that_rank_put_out():
    output = CellOutput([0, 1], 2)
    for rank in (0, 1):
        say(output, rank, "common", f"from {rank}")
    output.clear(1)
    assert shown(output) == ["[0]   common", "[0]   from 0"]


def test_an_animation_stays_where_it_is_and_does_not_flicker():
    output = CellOutput([0, 1], 2)
    for frame in range(3):
        for rank in (0, 1):
            output.clear(rank, wait=True)
            if frame:
                assert len(shown(output)) == 4, "nothing goes before the new frame is there"
            output.display(rank, {"image/png": f"{rank} {frame}", "text/plain": "<Figure>"})
            if frame:
                plots = [b.data["image/png"] for b in blocks(output, True) if len(b.data) == 2]
                assert plots == [f"0 {frame}", f"1 {frame if rank else frame - 1}"]
    assert shown(output) == ["[0]", "<image/png>", "[1]", "<image/png>"]


def test_ranks_that_clear_and_say_the_same_merge_again():
    output = CellOutput([0, 1], 2)
    for epoch in range(3):
        for rank in (0, 1):
            output.clear(rank, wait=True)
            say(output, rank, f"epoch {epoch}")
    assert shown(output) == ["[0-1] epoch 2"]


def test_messages_are_taken_as_jupyter_sends_them():
    output = CellOutput([0], 2)
    ids = {"transient": {"display_id": "d"}, "metadata": {}}
    for kind, content in [
        ("stream", {"name": "stdout", "text": "gone\n"}),
        ("clear_output", {"wait": False}),
        ("stream", {"name": "stdout", "text": "hello\n"}),
        ("display_data", {"data": {"text/plain": "a"}, **ids}),
        ("update_display_data", {"data": {"text/plain": "b"}, **ids}),
        ("execute_result", {"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 3}),
        ("error", {"ename": "E", "evalue": "no", "traceback": []}),
        ("status", {"execution_state": "idle"}),
    ]:
        output.message(0, kind, content)
    assert shown(output) == ["[0] hello", "[0] b", "[0] 42"]
    assert [error.ename for error in output.errors] == ["E"]
    assert shown(output, final=False)[-1] == "[0] raised E: no"
