"""Files that are written whole or not at all, and why a disk would not take them."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from mlxbench_kernel.errors import StorageError

ROOM = 1_000_000  # bytes that a folder must have left for a rank's own small files
# By the number of an OSError: what is wrong, and what to do about it.
CAUSES = {
    errno.ENOSPC: ("the disk is full", "make room there"),
    errno.EDQUOT: ("your quota there is used up", "make room there"),
    errno.EROFS: ("the disk is read-only", "name a folder on another one"),
    errno.EACCES: ("you may not write there", "name a folder of yours"),
    errno.EPERM: ("you may not write there", "name a folder of yours"),
    errno.ENOENT: ("the folder does not exist", "make it, or name another one"),
    errno.ENOTDIR: ("part of that path is a file", "name another folder"),
}
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # whatever the call was


def explain(error: OSError, folder: Path, fix: str = "") -> StorageError | None:
    """One line for an error that comes from a disk; None for any other one.

    Parameters
    ----------
    error
        What was raised.
    folder
        Where something was to be written; the error's own path counts for more.
    fix
        What to type; by default what the cause suggests.
    """
    if error.errno not in CAUSES or (error.errno not in _OF_A_DISK and error.filename is None):
        return None
    cause, usual = CAUSES[error.errno]
    return StorageError(f"cannot write {error.filename or folder}: {cause}: {fix or usual}")


def write_whole(path: Path, write: Callable[[Path], None], fix: str = "") -> None:
    """Write a file under another name beside its own, and give it that once it is complete.

    Other processes see the former file or the new one, never a part. Its mode is 0600.

    Parameters
    ----------
    path
        The file.
    write
        Writes all of it to the path that it is given, which has the same suffix:
        ``lambda part: mx.save_safetensors(str(part), arrays)``.
    fix
        What to type where that fails; by default what the cause suggests.

    Raises
    ------
    StorageError
        It could not be written: why, and what to type. Nothing is left of it. Anything that
        `write` raises and that does not come from the disk is raised as it is.
    """
    part: Path | None = None
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=f".part{path.suffix}"
        )
        part = Path(name)
        os.close(handle)
        write(part)
        _to_disk(part)
        os.chmod(part, 0o600)
        os.replace(part, path)
    except BaseException as error:
        if part is not None:
            _remove(part)
        ours = part is None or getattr(error, "filename", None) in (None, str(part))
        if is_mlx_write(error):
            error = OSError(errno.ENOSPC, str(error))
        if isinstance(error, OSError):
            named = OSError(error.errno, error.strerror, str(path)) if ours else error
            told = explain(named, path, fix)
            if told is not None:
                raise told from None
        raise
    try:
        _to_disk(path.parent)
    except OSError:  # not every file system lets one do that with a folder
        pass


def write_text(path: Path, text: str, fix: str = "") -> None:
    """Write a text as `write_whole` does."""
    write_whole(path, lambda part: _write_text(part, text), fix)


def _write_text(part: Path, text: str) -> None:
    part.write_text(text)


def require_room(folder: Path, fix: str = "", size: int = ROOM) -> None:
    """See that a folder takes `size` bytes, by writing them; they are taken away again.

    Raises
    ------
    StorageError
        It does not: why, and what to type.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        told = explain(OSError(error.errno, error.strerror, str(folder)), folder, fix)
        if told is not None:
            raise told from None
        raise


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # the disk has become read-only meanwhile
        pass


def is_mlx_write(error: BaseException) -> bool:
    """Whether MLX could not write all of a file; it does not say why (``mlx/io/load.h``)."""
    return isinstance(error, RuntimeError) and str(error).startswith("[write] Unable to write")


_private: list[Path] = []  # one at most


def keep_private(folder: Path | None) -> None:
    """Say which folder of this process is removed when it ends, however that happens."""
    _private[:] = [] if folder is None else [folder]


def private_folder(name: str) -> Path:
    """A new folder that does not outlive this process: of a rank in its own, else a temporary one.

    Parameters
    ----------
    name
        How it begins.
    """
    if _private and _private[0].exists():
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_private[0]))
    folder = tempfile.mkdtemp(prefix=f"mlxbench-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
