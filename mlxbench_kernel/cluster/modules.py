"""Python modules that lie beside the notebook, copied to other hosts."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxbench_kernel.cluster.ssh import Call
from mlxbench_kernel.memory import format_bytes
from mlxbench_kernel.rank.files import ROOM

LARGEST_FILE = 1_000_000
LARGEST_SET = 20_000_000
SKIPPED = {"__pycache__", "node_modules", "build", "dist"}

# Runs on the host. A new copy is complete before a link leads to it, so that a rank that
# imports meanwhile finds the former one or the new one.
_UNPACK = """
import io, os, shutil, sys, tarfile, tempfile
target, folders = sys.argv[1], sys.argv[2:]
parent = os.path.dirname(target)
os.makedirs(parent, exist_ok=True)
os.chmod(parent, 0o700)
for path in folders:
    os.makedirs(path, mode=0o700, exist_ok=True)
try:
    with tempfile.TemporaryFile(dir=parent) as room:  # for the small files of ranks
        room.write(bytes(ROOM))
        room.flush()
        os.fsync(room.fileno())
except OSError as error:
    raise OSError(error.errno, error.strerror, parent) from None
fresh = tempfile.mkdtemp(prefix=".modules-", dir=parent)
with tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read())) as archive:
    for member in archive:
        parts = member.name.split("/")
        if not member.isfile() or member.name.startswith("/") or ".." in parts:
            shutil.rmtree(fresh)
            sys.exit("not a file of this folder: " + member.name)
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(fresh, **safe)
former = os.readlink(target) if os.path.islink(target) else ""
os.symlink(os.path.basename(fresh), fresh + ".link")
os.replace(fresh + ".link", target)
if former:
    shutil.rmtree(os.path.join(parent, former), ignore_errors=True)
""".replace("ROOM", str(ROOM))


@dataclass(frozen=True)
class ModuleSet:
    """Files to copy.

    Attributes
    ----------
    folder
        Where they are.
    files
        Their paths, relative to it.
    left_out
        Those that are too large, or too many.
    """

    folder: Path
    files: tuple[Path, ...]
    left_out: tuple[Path, ...]

    def tar(self) -> bytes:
        """The files as an uncompressed tar archive; links as the files they lead to."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
            for path in self.files:
                archive.add(self.folder / path, arcname=path.as_posix(), recursive=False)
        return buffer.getvalue()

    def __str__(self) -> str:
        tops = dict.fromkeys(f"{p.parts[0]}/" if len(p.parts) > 1 else str(p) for p in self.files)
        size = sum((self.folder / path).stat().st_size for path in self.files)
        count = len(self.files)
        text = f"{', '.join(tops)} ({count} file{'s' * (count != 1)}, {format_bytes(size)})"
        if self.left_out:
            shown = ", ".join(path.as_posix() for path in self.left_out[:3])
            more = len(self.left_out) - 3
            text += f"; left out as too large: {shown}" + (f" and {more} more" if more > 0 else "")
        return text


def collect(folder: Path) -> ModuleSet:
    """The ``*.py`` files and the packages in `folder`.

    A package is a subfolder with ``__init__.py``; its Python files and small data files are
    taken. Hidden files, virtual environments and build folders are not.
    """
    candidates = sorted(path.name for path in folder.glob("*.py"))
    for package in sorted(path.parent.name for path in folder.glob("*/__init__.py")):
        candidates += _inside(folder, package)
    files: list[Path] = []
    left_out: list[Path] = []
    total = 0
    for name in candidates:
        path = folder / name
        if path.name.startswith(".") or not path.is_file():
            continue
        size = path.stat().st_size
        if size > LARGEST_FILE or total + size > LARGEST_SET:
            left_out.append(Path(name))
        else:
            files.append(Path(name))
            total += size
    return ModuleSet(folder, tuple(files), tuple(left_out))


def _inside(folder: Path, package: str) -> Iterator[str]:
    """Names of the files of a package, relative to `folder`, skipped folders unread."""
    if _skipped(folder, package):
        return
    for parent, folders, names in os.walk(folder / package):
        relative = os.path.relpath(parent, folder)
        folders[:] = sorted(
            name for name in folders if not _skipped(folder, os.path.join(relative, name))
        )
        yield from (os.path.join(relative, name) for name in sorted(names))


def _skipped(folder: Path, name: str) -> bool:
    base = os.path.basename(name)
    return base in SKIPPED or base.startswith(".") or (folder / name / "pyvenv.cfg").exists()


def copying(
    found: ModuleSet, host: str, python: str, target: str, folders: tuple[str, ...]
) -> Call:
    """The call that puts modules on a host, in one connection.

    Parameters
    ----------
    found
        What to copy; nothing is fine.
    host, python
        Name that ``ssh`` connects to, and the Python there.
    target
        Path there that will lead to the modules; a former copy is replaced at once, never in
        part. The folder that it is in is made private (0700).
    folders
        More private folders to make there.
    """
    return Call(host, False, python, _UNPACK, (target, *folders), found.tar())
