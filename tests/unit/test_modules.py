"""Modules beside the notebook: what is copied to other hosts, and what is said about it."""

import dataclasses
import io
import os
import sys
import tarfile

import pytest

from mlxbench_kernel.cluster import modules, ssh
from mlxbench_kernel.cluster.modules import collect, copying


@pytest.fixture
def folder(tmp_path):
    """A notebook's folder, with a way to fill it."""

    class Folder:
        path = tmp_path / "project"

        def add(self, name, content="x = 1\n"):
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            return file

    return Folder()


def names(found):
    return [path.as_posix() for path in found.files]


def copy(found, target, *folders):
    """Copy as to another host, but in a process on this one."""
    call = copying(found, "mac-b", sys.executable, str(target), tuple(map(str, folders)))
    return ssh.run([dataclasses.replace(call, local=True)], 20.0)[0]


def unpacked(found, target):
    """What a rank finds after the copy."""
    assert copy(found, target).code == 0
    return {
        path.relative_to(target).as_posix(): path.read_text()
        for path in sorted(target.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def test_modules_and_packages_arrive_and_nothing_else(folder, tmp_path):
    folder.add("model.py", "width = 64\n")
    folder.add("data/__init__.py", "")
    folder.add("data/labels.txt", "zero\none\n")
    folder.add("data/readers/digits.py")
    for name in (
        "train.ipynb", "digits.csv", "notes/ideas.py", "pyproject.toml", ".hidden.py",
        "data/__pycache__/__init__.cpython-311.pyc", "data/.cache/x.py", "data/build/lib.py",
        ".venv/__init__.py", "build/__init__.py", "node_modules/__init__.py",
    ):  # fmt: skip
        folder.add(name)
    found = collect(folder.path)
    assert sorted(names(found)) == [
        "data/__init__.py", "data/labels.txt", "data/readers/digits.py", "model.py",
    ]  # fmt: skip
    assert str(found) == "model.py, data/ (4 files, 26 B)"
    assert unpacked(found, tmp_path / "remote") == {
        "model.py": "width = 64\n",
        "data/__init__.py": "",
        "data/labels.txt": "zero\none\n",
        "data/readers/digits.py": "x = 1\n",
    }


def test_a_folder_without_modules_has_nothing_to_copy(folder):
    folder.add("train.ipynb", "{}")
    found = collect(folder.path)
    assert found.files == () and found.left_out == ()
    with tarfile.open(fileobj=io.BytesIO(found.tar())) as archive:
        assert archive.getnames() == []


def test_large_files_are_left_out_and_named(folder):
    folder.add("model.py")
    folder.add("data/__init__.py")
    folder.add("data/weights.bin", "x" * (modules.LARGEST_FILE + 1))
    found = collect(folder.path)
    assert names(found) == ["model.py", "data/__init__.py"]
    assert str(found).endswith("; left out as too large: data/weights.bin")


def test_no_more_is_copied_than_a_person_waits_for(folder, monkeypatch):
    monkeypatch.setattr(modules, "LARGEST_SET", 25)
    for name in ("a.py", "b.py", "c.py"):
        folder.add(name, "0123456789")
    folder.add("d.py", "01234")
    found = collect(folder.path)
    assert names(found) == ["a.py", "b.py", "d.py"]
    assert [path.name for path in found.left_out] == ["c.py"]


def test_a_linked_module_arrives_as_the_file_it_is(folder, tmp_path):
    shared = tmp_path / "library" / "shared.py"
    shared.parent.mkdir()
    shared.write_text("y = 2\n")
    folder.add("model.py")
    (folder.path / "relative.py").symlink_to("../library/shared.py")
    (folder.path / "absolute.py").symlink_to(shared)
    found = collect(folder.path)
    assert unpacked(found, tmp_path / "remote") == {
        "absolute.py": "y = 2\n",
        "model.py": "x = 1\n",
        "relative.py": "y = 2\n",
    }


def test_what_only_looks_like_a_module_does_no_harm(folder):
    folder.add("model.py")
    (folder.path / "gone.py").symlink_to("nowhere.py")
    (folder.path / "folder.py").mkdir()
    assert names(collect(folder.path)) == ["model.py"]


def test_virtual_environments_are_known_by_what_is_in_them(folder):
    folder.add("model.py")
    folder.add("tools/__init__.py")
    folder.add("tools/env/pyvenv.cfg", "home = /usr/bin\n")
    folder.add("tools/env/lib/python3.12/site-packages/numpy.py")
    folder.add("myenv/__init__.py")
    folder.add("myenv/pyvenv.cfg", "home = /usr/bin\n")
    assert names(collect(folder.path)) == ["model.py", "tools/__init__.py"]


def test_a_new_copy_replaces_the_former_one_whole(folder, tmp_path):
    target = tmp_path / "run" / "mlx-1" / "modules"
    folder.add("model.py", "width = 64\n")
    folder.add("old.py")
    unpacked(collect(folder.path), target)
    reader = os.open(target / "model.py", os.O_RDONLY)  # a rank that reads it meanwhile
    (folder.path / "old.py").unlink()
    folder.add("model.py", "width = 128\n")
    assert unpacked(collect(folder.path), target) == {"model.py": "width = 128\n"}
    assert os.read(reader, 100) == b"width = 64\n"
    os.close(reader)
    assert len(list(target.parent.iterdir())) == 2  # the copy, and the link that leads to it


def test_the_folders_on_the_host_are_private(folder, tmp_path):
    folder.add("model.py")
    target = tmp_path / "run" / "mlx-1" / "modules"
    ranks = [target.with_name("rank-0"), target.with_name("rank-1")]
    assert copy(collect(folder.path), target, *ranks).code == 0
    for path in (target.parent, target.resolve(), *ranks):
        assert path.stat().st_mode & 0o777 == 0o700, path


@pytest.mark.parametrize("name", ["../escaped.py", "/tmp/escaped.py", "link.py"])
def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path, name):
    class Forged(modules.ModuleSet):
        def tar(self):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                member = tarfile.TarInfo(name)
                if name == "link.py":
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(member)
            return buffer.getvalue()

    target = tmp_path / "run" / "modules"
    answer = copy(Forged(tmp_path, (), ()), target)
    assert answer.code == 1 and "not a file of this folder" in answer.stderr
    assert list(target.parent.iterdir()) == []
