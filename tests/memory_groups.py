"""A control group with a limit of memory, for a rank that is to run out of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from needs import require

TOP = Path("/sys/fs/cgroup")


@contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A group of at most `limit` bytes, version 1 or 2; removed when its processes are gone.

    Where this machine lets no one make such a group, the test is skipped.
    """
    v1 = TOP / "memory" / "memory.limit_in_bytes"
    group = (v1.parent if v1.exists() else TOP) / f"mlxbench-test-{secrets.token_hex(3)}"
    name = "memory.limit_in_bytes" if v1.exists() else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        require(False, f"no control group can be made: {error}")
    try:
        require((group / name).exists(), "control groups here do not limit memory")
        require(os.access(group / name, os.W_OK), "control groups here cannot be set")
        (group / name).write_text(str(limit))
        yield group
    finally:
        group.rmdir()
