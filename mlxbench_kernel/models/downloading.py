"""How far the download of a model from the hub is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LOOK_SECONDS = 0.5
Tell = Callable[[int, int], None]


class Downloading:
    """Tells how many bytes have come while the block downloads a model, and of how many.

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

    def __init__(self, repo: str, revision: str | None, tell: Tell) -> None:
        self._repo, self._revision, self._tell = repo, revision, tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mlxbench-download", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        from huggingface_hub import constants

        blobs = Path(constants.HF_HUB_CACHE) / f"models--{self._repo.replace('/', '--')}" / "blobs"
        if self._over.wait(LOOK_SECONDS):
            return
        total = self._total()
        while not self._over.wait(LOOK_SECONDS):
            self._tell(_bytes_in(blobs), total)

    def _total(self) -> int:
        """Bytes of the files that mlx-lm wants; 0 where that is not known."""
        from huggingface_hub import HfApi
        from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

        try:
            info: Any = HfApi().model_info(
                self._repo, revision=self._revision, files_metadata=True, timeout=10
            )
        except Exception:  # of the hub's library, and of what it is built on: offline, for one
            return 0
        return sum(
            each.size or 0
            for each in info.siblings
            if any(fnmatch(each.rfilename, pattern) for pattern in DEFAULT_ALLOW_PATTERNS)
        )


def _bytes_in(blobs: Path) -> int:
    """Bytes of the files in a folder, those that are not complete included."""
    found = 0
    for each in blobs.glob("*"):
        try:
            found += each.stat().st_size
        except OSError:  # it has another name now
            continue
    return found
