"""The last sample of a rank, where it outlives the rank: a small file in its private folder.

A process that the system kills for memory gets no time to say anything, and a sample that was
asked for may be a second old by then. So a rank writes its own, some times a second while a cell
runs (`rank.recorder`), into a file that has its full size from the start: where memory is short,
nothing has to be found for it any more.

This module needs neither MLX nor IPython: on other hosts a bare Python reads with it.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

NAME = "last-seen"
SLOT = 4096
_HEAD = struct.Struct("<QII")  # number of the record, length and checksum of its text


class Writer:
    """Writes records, each in the place of the one before the last.

    Parameters
    ----------
    folder
        Private folder of the rank.

    Raises
    ------
    OSError
        The file cannot be made there.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.pwrite(self._file, bytes(2 * SLOT), 0)
        self._number = 0

    def write(self, record: dict[str, Any]) -> None:
        """Write one record; the one before stays whole until this one is.

        Raises
        ------
        OSError
            It cannot be written.
        """
        text = json.dumps(record).encode()
        if len(text) > SLOT - _HEAD.size:
            text = json.dumps({**record, "largest": []}).encode()
        self._number += 1
        head = _HEAD.pack(self._number, len(text), zlib.crc32(text))
        os.pwrite(self._file, head + text, SLOT * (self._number % 2))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(folder: Path) -> dict[str, Any] | None:
    """The newest whole record in a rank's folder; None without one."""
    try:
        content = (folder / NAME).read_bytes()
    except OSError:
        return None
    newest, found = 0, None
    for start in range(0, len(content), SLOT):
        slot = content[start : start + SLOT]
        if len(slot) < _HEAD.size:
            continue
        number, length, checksum = _HEAD.unpack_from(slot)
        text = slot[_HEAD.size : _HEAD.size + length]
        whole = 0 < length == len(text) and zlib.crc32(text) == checksum
        if number > newest and whole:
            newest, found = number, json.loads(text)
    return found


def report(folder: Path) -> dict[str, Any] | None:
    """What the host of a dead rank can say of its memory.

    Returns
    -------
    dict or None
        The record with ``age`` (seconds, on the host's own clock) and ``killed``: how often the
        system has ended processes for memory since, where it counts that; None without a record.
    """
    from mlxbench_kernel.memory import cgroup

    record = read(folder)
    if record is None:
        return None
    before = record.get("oom_kills", {})
    now = cgroup.oom_kills([Path(group) for group in before])
    killed = sum(now[group] - before[group] for group in before if group in now)
    return {**record, "age": max(time.time() - record["time"], 0.0), "killed": killed}
