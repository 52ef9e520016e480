"""Ranks start on a disk that is full, read-only or not there: they do, or one line says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from disks import small_disk
from running import Recorded, processes

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import BenchError, StorageError

FIX = "make room there, or set JUPYTER_RUNTIME_DIR to a folder where you can write"


@pytest.mark.parametrize(
    ("how", "cause"), [("full", "the disk is full"), ("locked", "the disk is read-only")]
)
def test_a_runtime_folder_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, cause: str
) -> None:
    before = processes()
    with small_disk(tmp_path / "runtime", 500) as disk:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(disk.folder))
        if how == "full":
            filler = disk.fill()
            filler.write_bytes(b"")  # room for folders, and for little more
        else:
            disk.lock()
        with pytest.raises(StorageError) as caught:
            Cluster.up(2)
        message = str(caught.value)
        assert message.startswith(f"cannot write {disk.folder}/mlxbench")
        assert message.endswith(f": {cause}: {FIX}") and "\n" not in message
        assert not list(disk.folder.glob("mlxbench/*"))
    assert processes() <= before


def test_a_runtime_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "file" / "runtime"))
    with pytest.raises(StorageError, match=r"part of that path is a file: make room there, or set"):
        Cluster.up(2)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "new" / "runtime"))
    Cluster.up(1).down()
    assert (tmp_path / "new" / "runtime").is_dir()


def test_a_disk_that_fills_up_while_ranks_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = processes()
    with small_disk(tmp_path / "runtime", 2000) as disk:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(disk.folder))

        def fill(done: float, text: str) -> None:
            if text.startswith("starting"):
                disk.fill()

        with pytest.raises(BenchError) as caught:
            Cluster.up(2, progress=fill, timeout=20)
        assert "the disk is full: make room there" in str(caught.value).splitlines()[0]
        assert not list(disk.folder.glob("mlxbench/*"))
    assert processes() <= before


@pytest.mark.parametrize("how", ["missing", "full", "locked"])
def test_ranks_need_no_temporary_folder(tmp_path: Path, how: str, recorded: Recorded) -> None:
    with small_disk(tmp_path / "tmp", 64) as disk:
        folder = disk.folder
        if how == "full":
            disk.fill()
        elif how == "locked":
            disk.lock()
        else:
            folder = tmp_path / "missing"
        cluster = Cluster.up(2, env={"TMPDIR": str(folder)})
        try:
            code = "mx.distributed.all_sum(mx.array(rank + 1), group=group).item()"
            cluster.execute(code, output=recorded)
            assert [recorded.text(rank) for rank in (0, 1)] == ["3", "3"]
            # What MLX was told to read is gone, as if it had been a temporary file.
            assert not list(cluster.info.home.rglob("MLX_*"))
        finally:
            cluster.down()


def test_a_cache_that_cannot_be_written_is_noted(tmp_path: Path, recorded: Recorded) -> None:
    with small_disk(tmp_path / "cache", 64) as disk:
        disk.lock()
        cluster = Cluster.up(2, env={"MLXBENCH_CACHE": str(disk.folder)})
        try:
            (note,) = cluster.info.notes
            assert "works without the native module (cannot write to the cache folder" in note
            assert "Read-only file system" in note and "set MLXBENCH_CACHE to a folder" in note
            cluster.execute("mx.distributed.all_sum(mx.array(1)).item()", output=recorded)
            assert recorded.text(1) == "2"
        finally:
            cluster.down()
        assert list(disk.folder.iterdir()) == []


def test_attach_on_a_full_disk_leaves_the_cluster_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "runtime", 4000) as disk:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(disk.folder))
        cluster = Cluster.up(1, keep=True)
        try:
            cluster.execute("kept = 5")
            description = cluster.info.home / "cluster.json"
            before = json.loads(description.read_text())
            filler = disk.fill()
            with pytest.raises(StorageError, match="the disk is full: make room there, or set"):
                Cluster.attach(cluster.id)
            assert json.loads(description.read_text()) == before
            assert not list(description.parent.glob(".cluster*"))
            filler.unlink()
            again = Cluster.attach(cluster.id)
            assert again.pull("kept") == {0: 5} and again.info.owner == os.getpid()
            again.client.close()
        finally:
            cluster.down()


def test_a_rank_on_a_full_disk_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded
) -> None:
    with small_disk(tmp_path / "runtime", 4000) as disk:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(disk.folder))
        cluster = Cluster.up(2)
        try:
            disk.fill()
            cluster.execute("import time\ntime.sleep(0.5)\nrank", output=recorded)
            assert [recorded.text(rank) for rank in (0, 1)] == ["0", "1"]
        finally:
            cluster.down()
        assert not list(disk.folder.glob("mlxbench/*"))
