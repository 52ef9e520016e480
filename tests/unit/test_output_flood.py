"""A million printed lines do not choke anything, and what matters of them stays."""

from __future__ import annotations

import re

from mlxbench_kernel.kernel.output import CellOutput, InPlace
from mlxbench_kernel.kernel.output.ansi import strip
from mlxbench_kernel.kernel.output.blocks import blocks
from mlxbench_kernel.kernel.output.merge import HEAD, SLACK, TAIL


def text_of(output: CellOutput, final: bool = True) -> list[str]:
    return [
        line
        for block in blocks(output, final)
        for line in strip(block.data["text/plain"]).split("\n")
    ]


def flood(first: int, last: int, form: str = "step {}") -> str:
    return "".join(form.format(step) + "\n" for step in range(first, last))


def test_of_two_million_lines_the_first_and_the_last_are_kept():
    pieces = [flood(start, start + 100_000) for start in range(0, 1_000_000, 100_000)]
    output = CellOutput([0, 1], 2)
    for piece in pieces:
        for rank in (0, 1):
            output.stream(rank, "stdout", piece)
    lines = text_of(output)
    assert lines[:HEAD] == [f"[0-1] step {step}" for step in range(HEAD)]
    gap = re.fullmatch(r"… ([\d ]+) lines of each of \[0-1\] left out …", lines[HEAD])
    assert gap is not None
    kept = lines[HEAD + 1 :]
    assert int(gap[1].replace(" ", "")) + HEAD + len(kept) == 1_000_000
    assert kept == [f"[0-1] step {step}" for step in range(1_000_000 - len(kept), 1_000_000)]


def test_ranks_that_flood_one_after_the_other_still_end_together():
    output = CellOutput([0, 1, 2], 3)
    output.stream(2, "stdout", flood(0, 1500, "only here {}"))
    for rank in (0, 1):
        for start in range(0, 300_000, 50_000):
            output.stream(rank, "stdout", flood(start, start + 50_000))
    assert text_of(output)[-1000:] == [f"[0-1] step {step}" for step in range(299_000, 300_000)]


def test_the_last_lines_of_a_quiet_rank_survive_the_flood_of_another():
    output = CellOutput([0, 1], 2)
    output.stream(0, "stdout", flood(0, HEAD + 1))
    output.stream(1, "stdout", "the result of rank 1\n")
    for start in range(0, 200_000, 700):
        output.stream(0, "stdout", flood(start, start + 700, "noise {}"))
    assert "[1]   the result of rank 1" in text_of(output)


def test_what_is_kept_is_bounded_and_every_line_is_accounted_for():
    output = CellOutput([0, 1], 2)
    for start in range(0, 60_000, 300):
        for rank in (0, 1):
            output.stream(rank, "stdout", flood(start, start + 300, f"rank {rank} step {{}}"))
            assert output.merge.nodes.weight <= HEAD + TAIL + SLACK + 300
    lines = text_of(output)
    assert lines[-1] == "[1]   rank 1 step 59999"
    for rank in (0, 1):
        mine = [line for line in lines if line.startswith(f"[{rank}]")]
        assert len(mine) + output.left_out[rank] == 60_000
        assert len(mine) >= TAIL // 2


def test_a_flood_of_lines_does_not_push_out_a_plot():
    output = CellOutput([0], 2)
    output.stream(0, "stdout", flood(0, 50_000))
    output.display(0, {"image/png": "plot", "text/plain": "<Figure>"})
    output.stream(0, "stdout", flood(0, 500_000))
    assert any("image/png" in block.data for block in blocks(output, final=True))


def test_many_large_bundles_are_bounded_too():
    output = CellOutput([0], 2)
    for number in range(200):
        output.display(0, {"text/html": f"{number}" + "x" * 2_000_000})
    kept = [block for block in blocks(output, final=True) if "text/html" in block.data]
    assert len(kept) < 80
    assert kept[-1].data["text/html"].startswith("199")


def test_redraws_stay_small_while_a_flood_comes_in():
    output = CellOutput(range(8), 8)
    now = [0.0]
    sent: list[int] = []
    presenter = InPlace(
        output,
        lambda data, *_: sent.append(len(data["text/plain"])),
        clock=lambda: now[0],
    )
    for start in range(0, 200_000, 5000):
        for rank in range(8):
            output.stream(rank, "stdout", flood(start, start + 5000, f"rank {rank} step {{}}"))
        now[0] += 10
        sent.clear()
        presenter.refresh()
        assert sum(sent) < 50_000, "only the last lines go out again"
    live = text_of(output, final=False)
    assert live[-1] == "[7]   rank 7 step 199999"
    assert sum("left out" in line for line in live) == 1
    presenter.finish()
    assert sum("left out" in line for line in text_of(output)) == 1


def test_clearing_after_a_flood_begins_anew():
    output = CellOutput([0], 2)
    output.stream(0, "stdout", flood(0, 100_000))
    output.clear(0)
    output.stream(0, "stdout", flood(0, 5))
    assert text_of(output) == [f"[0] step {step}" for step in range(5)]


def test_a_huge_value_is_shortened():
    output = CellOutput([0], 2)
    output.result(0, {"text/plain": "[" + "1, " * 1_000_000 + "]"})
    text = "\n".join(text_of(output))
    assert len(text) < 110_000
    assert "characters left out" in text
