"""``make demo``: a notebook without a browser, and what it says of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab import CHROMIUM

from mlxbench_kernel.kernel.demo import main

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
RAISES = {"tags": ["raises-exception"]}


def notebook(path: Path, *cells: str, metadata: dict[str, Any] | None = None) -> Path:
    new = nbformat.v4
    document = new.new_notebook(
        cells=[new.new_code_cell(source, metadata=metadata or {}) for source in cells]
    )
    nbformat.write(document, path)
    return path


def tutorials() -> list[Path]:
    """All; where there is a browser without those that train for long, which run in it alone: see
    tests/browser/test_lab.py."""
    return [
        path
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
        if not (CHROMIUM and path.name.startswith(("03", "04", "05")))
    ]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_output_is_kept_in_a_tutorial(path: Path) -> None:
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.parametrize("path", tutorials(), ids=lambda path: path.stem)
def test_every_tutorial_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert main([str(path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    raising = sum("raises-exception" in cell.metadata.get("tags", ()) for cell in cells)
    assert ("all ran" if not raising else f"all ran; {raising} raised, as they should") in last


def test_a_cell_that_is_to_raise_may_and_has_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(tmp_path / "raises.ipynb", "1 / 0", "int('no')", metadata=RAISES)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.endswith(": all ran; 2 raised, as they should\n")
    path = notebook(tmp_path / "silent.ipynb", "1 / 0", "x = 1", metadata=RAISES)
    assert main([str(path)]) == 1
    told = "demo: cell 2 was to raise, by its tag raises-exception, and did not\n"
    assert capsys.readouterr().err == told


def test_it_says_what_ran_and_leaves_the_notebook_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(
        tmp_path / "ranks.ipynb",
        "%mlx_dist up -n 2",
        "%%mlx_dist\nmx.distributed.all_sum(mx.array(rank + 1))",
        "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]))",
        "print(*range(100), sep='\\n')",
        "%mlx_dist down",
    )
    before = path.read_bytes()

    assert main([str(path)]) == 0

    shown = capsys.readouterr().out
    assert "%%mlx_dist | mx.distributed.all_sum(mx.array(rank + 1))" in shown
    assert "[0-1] array(3, dtype=int32)" in shown
    assert "(figure)" in shown
    assert "…" in shown and " 99\n" in shown and " 50\n" not in shown  # not all 100 lines
    last = shown.splitlines()[-1]
    assert last.startswith("5 cells in ") and last.endswith(" s, on 2 ranks: all ran")
    assert path.read_bytes() == before


def test_a_cell_that_raises_ends_the_run_with_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(tmp_path / "bad.ipynb", "x = 0", "y = 1\ny / x", "print('not reached')")
    assert main([str(path)]) == 1
    shown = capsys.readouterr()
    assert "----> 2 y / x" in shown.out
    assert "not reached" not in shown.out
    assert shown.err == "demo: cell 2 raised ZeroDivisionError; see above\n"


def test_a_cell_that_hangs_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = notebook(tmp_path / "slow.ipynb", "import threading\nthreading.Event().wait()")
    assert main([str(path), "--timeout", "1"]) == 1
    told = "demo: cell 1 took more than 1 s; --timeout S allows more\n"
    assert capsys.readouterr().err == told


def test_a_kernel_that_dies_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(tmp_path / "dies.ipynb", "import os", "os._exit(1)")
    assert main([str(path)]) == 1
    assert capsys.readouterr().err == "demo: the kernel died in cell 2\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(None, "cannot be read: No such file"), ("no", "is not a"), ("{}", "is not a")],
)
def test_what_is_no_notebook_is_said_in_one_line(
    text: str | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.ipynb"
    if text is not None:
        path.write_text(text)
    assert main([str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"demo: {path} {complaint}")
