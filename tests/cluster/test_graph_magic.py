"""``%mlx_graph`` on real ranks, from a notebook's session."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import SETUP
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from mlxbench_kernel.errors import UsageError

BAD = """
def uneven(x):
    return mx.distributed.all_sum(x * 2 if rank else x, group=g).sum()

def broken(x):
    return mx.distributed.all_sum(mx.log(x - 2 * rank), group=g).sum()

def unsent(x):
    return mx.distributed.recv_like(x, 0, group=g) + x if rank else x * 2

def both(x):
    got = mx.distributed.recv_like(x, 1 - rank, group=g)
    return mx.distributed.send(got + x, 1 - rank, group=g)

def opposite(x):
    sums = [mx.distributed.all_sum(mx.sin(x), group=g), mx.distributed.all_sum(mx.cos(x), group=g)]
    return sums[::-1] if rank else sums

def noted(x, path):
    with open(path, "a") as file:
        file.write(f"{rank}\\n")
    return mx.distributed.all_sum(x * 2, group=g)

fed = mx.ones(3)
mx.eval(fed)
"""


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    """A session with two ranks."""
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()  # the one whose displays are captured
    with capture_output():
        shell.run_line_magic("load_ext", "mlxbench_kernel")
        shell.run_line_magic("mlx_dist", "up -n 2")
        shell.run_cell_magic("mlx_dist", "", SETUP + BAD)
    yield shell
    with capture_output():
        shell.run_line_magic("mlx_dist", "down")
    shell.run_line_magic("unload_ext", "mlxbench_kernel")
    InteractiveShell.clear_instance()


def shown(shell: InteractiveShell, line: str) -> tuple[str, dict[str, Any]]:
    """The text under a cell, and what was displayed."""
    with capture_output() as captured:
        shell.run_line_magic("mlx_graph", line)
    view, picture = captured.outputs
    return captured.stdout, {**view.data, **picture.data}


def test_one_line_says_whether_the_ranks_agree(shell: InteractiveShell) -> None:
    said, data = shown(shell, "step(x, y) --ranks all")
    assert re.fullmatch(r"ranks 0, 1 agree: \d+ nodes, 1 collectives?\n", said)
    assert "all_sum" in data["image/svg+xml"]
    said, data = shown(shell, "uneven(fed) --ranks all")
    assert said.startswith("rank 0 and rank 1 differ") and said.count("\n") == 1
    assert "removed: only on rank 0, added: only on rank 1" in data["image/svg+xml"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("unsent", "rank 1 would wait for ever for what rank 0 does not send it (recv of float32"),
        ("both", "rank 0 would wait for ever for what rank 1 does not send it before its own recv"),
        ("opposite", "have them evaluated in the same order on all ranks"),
    ],
)
def test_what_would_deadlock_or_mix_up_sums_is_said(
    shell: InteractiveShell, call: str, told: str
) -> None:
    said, _ = shown(shell, f"{call}(fed) --ranks all")
    assert said.startswith("the ranks do not agree: ") and told in said and said.count("\n") == 1


def test_the_expression_is_evaluated_once_per_rank(shell: InteractiveShell, tmp_path: Path) -> None:
    path = tmp_path / "calls.txt"
    said, _ = shown(shell, f"noted(fed, {str(path)!r}) --ranks all --nonfinite --profile")
    assert "agree" in said and "everything is finite" in said and "evaluated apart" in said
    assert sorted(path.read_text().split()) == ["0", "1"]


def test_a_single_rank(shell: InteractiveShell) -> None:
    said, data = shown(shell, "step(x, y) --ranks 1")
    assert said.strip() == "" and "rank 1" in data["text/plain"]


def test_a_profile_of_all_ranks_side_by_side(shell: InteractiveShell) -> None:
    said, data = shown(shell, "step(x, y) --ranks all --profile")
    assert re.search(r"rank 0 +rank 1  ms\n", said)
    rows = {line.split("  ")[-1]: line.split()[:2] for line in said.splitlines()[2:]}
    for name in ("whole", "sum of operations", "Sum AllReduce"):
        assert all(float(each) > 0 for each in rows[name]), name
    assert "rank 0" in data["text/plain"]


def test_the_first_bad_operation_on_all_ranks(shell: InteractiveShell) -> None:
    said, data = shown(shell, "broken(fed) --ranks all --nonfinite")
    assert "first on rank 1" in said and "Log" in said
    assert "rank 1" in data["text/plain"]


def test_what_would_wait_for_ever_is_refused(shell: InteractiveShell) -> None:
    with pytest.raises(UsageError, match="ask for all ranks"):
        shown(shell, "step(x, y) --ranks 1 --profile")
    with pytest.raises(UsageError, match="ranks"):
        shown(shell, "step(x, y) --ranks 7")
    with capture_output():
        shell.run_cell_magic("mlx_dist", "", "total = mx.distributed.all_sum(mx.ones(2)).sum()")
        shell.run_line_magic("mlx_dist", "pull total")
    assert np.array(shell.user_ns["total"][0]).item() == 4
