"""How far the download of a model from the hub is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.5
Tell = Callable[[int, int], None]


@contextmanager
def downloading(repo: str, revision: str | None, tell: Tell) -> Iterator[None]:
    """Tell how many bytes have come while the block downloads a model, and of how many.

    They are counted in the hub's cache on disk, as mlx-lm's downloader tells nobody; what was there
    before counts too.

    Parameters
    ----------
    repo, revision
        As for ``huggingface_hub.snapshot_download``.
    tell
        Is told both some times a second, on a thread of its own; the second is 0 where the hub
        does not say. Not told anything where it is over at once.
    """
    over = threading.Event()

    def watch() -> None:
        from huggingface_hub import constants

        blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
        if over.wait(LOOK_SECONDS):
            return
        first = most = _bytes_in(blobs)
        total = _total(repo, revision)
        while not over.wait(LOOK_SECONDS):
            most = max(most, _bytes_in(blobs))  # one that is renamed meanwhile is not seen
            if most > first:  # else the hub is slow to say that all of it is there
                tell(min(most, total) if total else most, total)

    threading.Thread(target=watch, name="mlxbench-download", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _total(repo: str, revision: str | None) -> int:
    """Bytes of the files that mlx-lm wants; 0 where that is not known."""
    from huggingface_hub import HfApi
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    try:
        info: Any = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
        return sum(
            each.size or 0
            for each in info.siblings
            if any(fnmatch(each.rfilename, pattern) for pattern in DEFAULT_ALLOW_PATTERNS)
        )
    except Exception:  # of the hub's library, and of what it is built on: offline, for one
        return 0


def _bytes_in(blobs: Path) -> int:
    """Bytes of the files in a folder, those that are not complete included."""
    found = 0
    for each in blobs.glob("*"):
        with suppress(OSError):  # it has another name now
            found += each.stat().st_size
    return found
