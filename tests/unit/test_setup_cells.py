"""Cells that are repeated on ranks which start later."""

from __future__ import annotations

from pathlib import Path

from mlxbench_kernel.cluster.setup_cells import SetupCells


def test_marked_cells_and_imports_are_kept_in_order(tmp_path: Path) -> None:
    setup = SetupCells(tmp_path)
    setup.note("import json, os\nfrom math import (\n    pi,\n)\nx = 1", setup=False)
    setup.note("def f(): pass", setup=True)
    setup.note("if True:\n    import re", setup=False)  # not at the top level
    setup.note("import json, os", setup=False)  # known already
    setup.note("def f(): pass", setup=True)
    assert setup.cells == ["import json, os", "from math import pi", "def f(): pass"]


def test_magics_and_broken_code_do_no_harm(tmp_path: Path) -> None:
    setup = SetupCells(tmp_path)
    setup.note("%matplotlib inline\nimport re", setup=False)
    setup.note("import (", setup=False)
    setup.note("x = 'import re'", setup=False)
    assert setup.cells == ["import re"]


def test_another_notebook_finds_them(tmp_path: Path) -> None:
    SetupCells(tmp_path).note("import json", setup=False)
    assert SetupCells(tmp_path).cells == ["import json"]
    other = tmp_path / "other"
    other.mkdir()
    moved = SetupCells(tmp_path)
    moved.save(other)
    moved.note("import re", setup=False)
    assert SetupCells(other).cells == ["import json", "import re"]
    assert SetupCells(tmp_path).cells == ["import json"]


def test_a_cell_of_ours_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    setup = SetupCells(tmp_path)
    setup.put("loading lm", "# mlxbench\nload('a')")
    setup.put("tuning lm", "# mlxbench\ntune()")
    setup.note("x = 1", setup=True)
    setup.put("loading lm", "# mlxbench\nload('b')")
    assert [cell.splitlines()[-1] for cell in setup.cells] == ["tune()", "x = 1", "load('b')"]
    assert setup.cells[-1].startswith("# mlxbench\n# loading lm\n")
    setup.put("tuning lm")
    assert SetupCells(tmp_path).cells == setup.cells and len(setup.cells) == 2


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "setup.json").write_text("{")
    assert SetupCells(tmp_path).cells == []
