"""Folders that are written whole beside their place, and then take it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from mlxbench_kernel.errors import BenchError, StorageError
from mlxbench_kernel.rank.files import explain, is_mlx_write


def attempt(place: Path, part: Path, work: Callable[[], None]) -> BenchError | None:
    """Do something on the disk; what went wrong, if anything did.

    Parameters
    ----------
    place
        The folder that the user knows, which an error names.
    part
        That `work` writes to.
    """
    try:
        work()
        return None
    except StorageError as error:
        told = error
    except OSError as error:
        told = explain(error, place) or StorageError(f"cannot write {place}: {error}")
    except RuntimeError as error:
        full = explain(OSError(errno.ENOSPC, ""), place) if is_mlx_write(error) else None
        told = full or StorageError(f"cannot write {place}: {type(error).__name__}: {error}")
    except Exception as error:  # the other ranks wait for what has become of it
        told = StorageError(f"cannot write {place}: {type(error).__name__}: {error}")
    return StorageError(str(told).replace(str(part), str(place)))


def publish(part: Path, place: Path) -> None:
    """Give a complete folder its name; what had that name before is taken away."""
    old = part.with_suffix(".old")
    replaced = place.exists()
    if replaced:
        place.rename(old)
    try:
        part.rename(place)
    except OSError:
        if replaced:
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
