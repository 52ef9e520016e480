"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mlxbench_kernel.errors import BenchError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, and put it there once it is complete (mode 0600).

    Raises
    ------
    BenchError
        It could not be written; nothing of it stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BenchError(f"cannot write {path.name} to {path.parent}: {error.strerror}") from None
