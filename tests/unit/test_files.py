"""Files are written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import mlx.core as mx
import pytest
from disks import small_disk

from mlxbench_kernel.errors import StorageError
from mlxbench_kernel.rank import files


def test_a_file_is_new_at_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_text("former")

    def write(part: Path) -> None:
        assert path.read_text() == "former" and part.parent == tmp_path
        mx.save_safetensors(str(part), {"w": mx.arange(4)})
        assert [each.name for each in tmp_path.iterdir() if each != path] == [part.name]

    files.write_whole(path, write)
    assert mx.load(str(path))["w"].tolist() == [0, 1, 2, 3]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("former")

    def write(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, write)

    def read_another(part: Path) -> None:
        (tmp_path / "gone" / "other").read_text()

    with pytest.raises(StorageError, match=r"gone/other: the folder does not exist"):
        files.write_whole(path, read_another)

    def wrong(part: Path) -> None:
        raise RuntimeError("[eval] nothing to do with a disk")

    with pytest.raises(RuntimeError, match="nothing to do"):
        files.write_whole(path, wrong)
    assert path.read_text() == "former" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", ["python", "mlx"])
def test_a_full_disk(tmp_path: Path, how: str) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        path = disk.folder / "state.safetensors"
        path.write_text("former")

        def write(part: Path) -> None:
            if how == "mlx":
                mx.save_safetensors(str(part), {"w": mx.ones((100_000,))})
            else:
                part.write_bytes(bytes(300_000))

        with pytest.raises(StorageError) as caught:
            files.write_whole(path, write, "protect(folder=…) names another one")
        assert str(caught.value) == (
            f"cannot write {path}: the disk is full: protect(folder=…) names another one"
        )
        assert path.read_text() == "former" and list(disk.folder.iterdir()) == [path]

        disk.fill()
        with pytest.raises(StorageError, match="the disk is full: make room there"):
            files.write_text(path, "new")
        assert path.read_text() == "former"


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        path = disk.folder / "state"
        path.write_text("former")
        disk.lock()
        with pytest.raises(StorageError, match=rf"cannot write {path}: the disk is read-only: "):
            files.write_text(path, "new")
        with pytest.raises(StorageError, match=rf"cannot write {disk.folder}: the disk is read-"):
            files.require_room(disk.folder)
        assert path.read_text() == "former" and list(disk.folder.iterdir()) == [path]


def test_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "no" / "state"
    with pytest.raises(StorageError, match=rf"cannot write {path}: the folder does not exist"):
        files.write_text(path, "new")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"part of that path is a file: name another folder"):
        files.write_text(tmp_path / "file" / "state", "new")


def test_room_is_looked_for_and_left_as_it_was(tmp_path: Path) -> None:
    files.require_room(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with small_disk(tmp_path / "disk", 64) as disk:
        files.require_room(disk.folder, size=10_000)
        with pytest.raises(StorageError, match=r"the disk is full: %mlx_dist"):
            files.require_room(disk.folder, "%mlx_dist down")
        assert list(disk.folder.iterdir()) == []


def test_an_error_of_a_socket_is_no_disks(tmp_path: Path) -> None:
    assert files.explain(OSError(errno.EACCES, "Permission denied"), tmp_path) is None
    assert files.explain(ConnectionRefusedError(errno.ECONNREFUSED, "no"), tmp_path) is None
