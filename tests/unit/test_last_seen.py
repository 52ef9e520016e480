"""The record that outlives its rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlxbench_kernel.rank import last_seen


def test_the_newest_record_is_read(tmp_path: Path) -> None:
    assert last_seen.read(tmp_path) is None
    writer = last_seen.Writer(tmp_path)
    assert last_seen.read(tmp_path) is None
    for number in range(5):
        writer.write({"number": number})
        assert last_seen.read(tmp_path) == {"number": number}
    writer.close()
    path = tmp_path / last_seen.NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 2 * last_seen.SLOT, "it never grows"


@pytest.mark.parametrize("cut", [0, 5, 20])
def test_a_record_that_was_cut_short_leaves_the_one_before(tmp_path: Path, cut: int) -> None:
    writer = last_seen.Writer(tmp_path)
    writer.write({"number": 1})
    writer.write({"number": 2, "more": "text"})
    path = tmp_path / last_seen.NAME
    content = bytearray(path.read_bytes())
    content[cut : last_seen.SLOT] = bytes(last_seen.SLOT - cut)
    path.write_bytes(content)
    assert last_seen.read(tmp_path) == {"number": 1}


def test_a_record_that_is_too_long_does_without_names(tmp_path: Path) -> None:
    writer = last_seen.Writer(tmp_path)
    writer.write({"number": 1, "largest": ["n" * last_seen.SLOT]})
    assert last_seen.read(tmp_path) == {"number": 1, "largest": []}


def test_the_host_adds_how_old_it_is_and_what_was_killed_since(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.events").write_text("oom 1\noom_kill 4\n")
    writer = last_seen.Writer(tmp_path)
    writer.write({"time": 0.0, "oom_kills": {str(group): 3, str(tmp_path / "other"): 1}})
    found = last_seen.report(tmp_path)
    assert found is not None and found["age"] > 1e9 and found["killed"] == 1
    (group / "memory.events").write_text("oom 1\noom_kill 3\n")
    found = last_seen.report(tmp_path)
    assert found is not None and found["killed"] == 0


def test_a_bare_python_can_read_it(tmp_path: Path) -> None:
    last_seen.Writer(tmp_path).write({"time": 0.0, "oom_kills": {}})
    code = (
        "import pathlib, sys; from mlxbench_kernel.rank import last_seen;"
        "found = last_seen.report(pathlib.Path(sys.argv[1]));"
        "print(found['killed'], {'mlx.core', 'IPython'} & set(sys.modules))"
    )
    out = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True)
    assert out == "0 set()\n"
