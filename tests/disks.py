"""Small disks for the tests, which can really be full or read-only (root heeds no file modes)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from needs import require


class Disk:
    """A file system of its own, mounted on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> Path:
        """Leave no byte; the file that takes them all is given back."""
        path = self.folder / "filler"
        with open(path, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        return path

    def lock(self) -> None:
        """Make it read-only."""
        _mount("-o", "remount,ro", str(self.folder))


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Disk]:
    """Mount an empty disk of some kB on a folder; the test is skipped where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    require(os.geteuid() == 0, "only root can mount a disk")
    done = _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "mlxbench-test", str(folder))
    require(done.returncode == 0, f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)
