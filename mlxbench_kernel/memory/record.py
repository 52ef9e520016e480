"""What a process keeps of its memory over time: samples in a ring, and what happened meanwhile.

The ring has an hour at 10 Hz. Samples are taken by a thread that begins with the first question
and slows down when nobody asks any more: so a notebook that comes back still finds the past.
"""

from __future__ import annotations

import base64
import secrets
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.memory.pools import pools
from mlxbench_kernel.memory.pushing import Pushing
from mlxbench_kernel.memory.samples import footprint

# Bytes, but for the time (Unix time of this process, in seconds), pressure (0 normal, 1 warn,
# 2 critical), step (of a stepper) and cell (the number of its mark). NaN is not known, or none.
COLUMNS = (
    "time", "active", "cache", "peak", "footprint",
    "total", "available", "wired", "compressed", "swap", "pressure",
    "gpu_total", "gpu_available", "step", "cell",
)  # fmt: skip
MOST = 36_000  # samples: an hour at 10 Hz
POOL_SECONDS = 1.0  # for which what is known of the pools is good enough: most of what a look takes
PERIOD = 0.1  # seconds from one sample to the next, at the fastest
REST_PERIOD = 1.0  # the same when nobody has asked for a while
ASKED_SECONDS = 10.0  # for which a question is remembered, and what was asked for is sent
MARKS = 2_000
PRESSURES = ("normal", "warn", "critical")
PART = 4_000  # samples of one answer
FIRST = 1_024
WATCHED = tuple(COLUMNS.index(name) for name in ("active", "cache", "peak", "footprint"))

Samples = NDArray[np.float64]


@dataclass
class Mark:
    """Something that happened: a cell of the user's, or what they have marked.

    Attributes
    ----------
    number
        Counted from 0.
    kind
        "cell" or "mark".
    name
        Of the cell, as ``Cell In[3]``, or as the user called it.
    begin, end
        Unix time; NaN while it lasts.
    """

    number: int
    kind: str
    name: str
    begin: float
    end: float = float("nan")

    @property
    def lasts(self) -> bool:
        """Whether it has not ended."""
        return self.end != self.end


class Ring:
    """The last rows of numbers.

    Parameters
    ----------
    columns
        How many numbers a row has.
    most
        How many rows are kept.

    Attributes
    ----------
    taken : int
        Rows that were ever put in.
    """

    def __init__(self, columns: int = len(COLUMNS), most: int = MOST) -> None:
        self._most, self.taken = most, 0
        self._lock = threading.Lock()
        self._rows: Samples = np.empty((min(FIRST, most), columns))
        self._row = struct.Struct(f"={columns}d")

    def append(self, row: Sequence[float]) -> None:
        """Append one row; ten times a second, for which NumPy's own way is slow."""
        with self._lock:
            if self.taken == len(self._rows) < self._most:
                self._make_room(1)
            place = self.taken % len(self._rows)
            self._row.pack_into(self._rows.data, place * self._row.size, *row)
            self.taken += 1

    def put(self, rows: Samples) -> None:
        """Append rows, float64 [n, columns]."""
        with self._lock:
            self._put(rows)

    def _put(self, rows: Samples) -> None:
        self.taken += max(len(rows) - self._most, 0)
        rows = rows[-self._most :]
        self._make_room(len(rows))
        places = (self.taken + np.arange(len(rows))) % len(self._rows)
        self._rows[places] = rows
        self.taken += len(rows)

    def _make_room(self, rows: int) -> None:
        """Rows lie where they always were: the ring has not come round yet."""
        while len(self._rows) < min(self.taken + rows, self._most):
            more = min(len(self._rows), self._most - len(self._rows))
            self._rows = np.concatenate([self._rows, np.empty((more, self._rows.shape[1]))])

    def since(self, number: int, most: int = MOST) -> tuple[int, Samples]:
        """Rows from a number on, oldest first: at most so many, and the number after them."""
        with self._lock:
            first = max(number, self.taken - self._most, 0)
            end = min(self.taken, first + most)
            return end, self._rows[np.arange(first, end) % len(self._rows)]

    @property
    def last(self) -> Samples | None:
        """The last row, float64 [columns]."""
        with self._lock:
            return self._rows[(self.taken - 1) % len(self._rows)].copy() if self.taken else None


class Record:
    """What is kept of one process.

    Attributes
    ----------
    step : function or None
        Gives the number of the training step, where there is one; called on any thread.
    pushing : Pushing
        Samples that are sent without a question for each.
    """

    def __init__(self, most: int = MOST) -> None:
        self.ring = Ring(most=most)
        self.marks: deque[Mark] = deque(maxlen=MARKS)
        self.step: Callable[[], int] | None = None
        self.pushing = Pushing(len(COLUMNS), WATCHED)
        self.version = 0  # of the marks
        self.identity = secrets.token_hex(8)
        self._number = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked, self._period = 0.0, REST_PERIOD
        self._wake = threading.Event()

    # -- what happens ------------------------------------------------------------

    def begin_cell(self, name: str) -> None:
        """A cell of the user's begins; the last one has ended."""
        self._end("cell")
        self._add("cell", name)

    def end_cell(self) -> None:
        """The cell has ended."""
        self._end("cell")

    def mark(self, name: str) -> None:
        """Something begins that the user wants to find again; "" ends the last one."""
        self._end("mark")
        if name:
            self._add("mark", name)

    def _add(self, kind: str, name: str) -> None:
        with self._lock:
            self.marks.append(Mark(self._number, kind, name, time.time()))
            self._number += 1
            self._changed(self.marks[-1])

    def _end(self, kind: str) -> None:
        with self._lock:
            last = self._open(kind)
            if last is not None:
                last.end = time.time()
                self._changed(last)

    def _changed(self, mark: Mark) -> None:
        self.version += 1
        self.pushing.mark(mark.number, _plain(mark))

    def _open(self, kind: str) -> Mark | None:
        """The last one of a kind, if it lasts."""
        last = self._last(kind)
        return last if last is not None and last.lasts else None

    def _last(self, kind: str) -> Mark | None:
        return next((mark for mark in reversed(self.marks) if mark.kind == kind), None)

    @property
    def last_cell(self) -> Mark | None:
        """The last cell that has ended; None while one runs, and before the first."""
        with self._lock:
            last = self._last("cell")
            return last if last is not None and not last.lasts else None

    @property
    def is_in_cell(self) -> bool:
        """Whether a cell of the user's runs."""
        with self._lock:
            return self._open("cell") is not None

    @property
    def is_asked(self) -> bool:
        """Whether anybody has ever asked."""
        return self._thread is not None

    # -- samples -----------------------------------------------------------------

    def take(self) -> None:
        """Take a sample now; from any thread."""
        step = self.step
        with self._lock:
            cell = self._open("cell")
            row = look(
                float("nan") if step is None else float(step()),
                float("nan") if cell is None else float(cell.number),
            )
            self.ring.append(row)
            about = {"record": self.identity}
            message = self.pushing.take(row, self.ring.taken, self.version, about)
        if message is not None and self.pushing.send is not None:
            self.pushing.send(message)

    def tell(
        self,
        since: int = 0,
        version: int = -1,
        period: float = PERIOD,
        record: str = "",
        push: bool = False,
    ) -> dict[str, Any]:
        """What is new, for one who asks again and again; sampling begins with that.

        Parameters
        ----------
        since
            The number of the first sample that is wanted.
        version
            Of the marks that are known already.
        period
            Seconds from one sample to the next, while there are questions.
        record
            The record that these numbers are of, as told before; of another one they do not
            count, and all is told.
        push
            Whether what follows is to be sent by itself for `ASKED_SECONDS`, see `Pushing.take`.

        Returns
        -------
        dict
            ``record``, which is no other's; ``next``, the number to ask from then on; ``more``,
            whether there is more now; ``now``, Unix time here; ``samples``, see `encode`;
            ``version``, and unless that is known ``marks``, as lists of the fields of `Mark`;
            ``pushes``, whether what follows is sent by itself.
        """
        if record != self.identity:
            since, version = 0, -1
        self._asked, faster = time.monotonic(), period < self._period
        self._period = max(period, PERIOD)
        if self._thread is None:
            self.take()
            self._thread = threading.Thread(target=self._run, daemon=True, name="mlxbench-memory")
            self._thread.start()
        elif faster:
            self._wake.set()
        with self._lock:
            following, rows = self.ring.since(since, PART)
            told: dict[str, Any] = {
                "record": self.identity,
                "next": following,
                "more": following < self.ring.taken,
                "now": time.time(),
                "samples": encode(rows),
                "version": self.version,
                "pushes": self.pushing.ask(ASKED_SECONDS if push else 0.0, self.version),
            }
            if version != self.version:
                told["marks"] = [_plain(mark) for mark in self.marks]
        return told

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            asked = time.monotonic() - self._asked < ASKED_SECONDS
            due = max(due + (self._period if asked else REST_PERIOD), time.monotonic())
            if self._wake.wait(due - time.monotonic()):
                self._wake.clear()
                due = time.monotonic()
                continue
            with suppress(Exception):  # there is no sample of now, but there will be others
                self.take()


def look(step: float = float("nan"), cell: float = float("nan")) -> list[float]:
    """One sample now, a number for each of `COLUMNS`; evaluates nothing, from any thread."""
    import mlx.core as mx

    return [
        time.time(), mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory(),
        footprint(), *_POOLS.now(), step, cell,
    ]  # fmt: skip


class _Pools:
    """The pools as they were at most `POOL_SECONDS` ago, as they stand in a sample."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._found: tuple[float, ...] = ()

    def now(self) -> tuple[float, ...]:
        if time.monotonic() - self._at > POOL_SECONDS:
            self._found, self._at = self._look(), time.monotonic()
        return self._found

    def _look(self) -> tuple[float, ...]:
        found = pools()
        host = next(each for each in found if not each.name.startswith("cuda"))
        gpu = next((each for each in found if each is not host), None)
        known = (
            host.total, host.available, host.wired, host.compressed, host.swap_used,
            None if host.pressure is None else PRESSURES.index(host.pressure),
            *((None, None) if gpu is None else (gpu.total, gpu.available)),
        )  # fmt: skip
        return tuple(float("nan") if each is None else float(each) for each in known)


_POOLS = _Pools()


def _plain(mark: Mark) -> list[Any]:
    """A mark for JSON, which has no NaN."""
    return [None if each != each else each for each in astuple(mark)]


def encode(rows: Samples) -> str:
    """Samples for JSON: little-endian float64, row by row, in base64."""
    return base64.b64encode(rows.astype("<f8").tobytes()).decode()


def decode(text: str) -> Samples:
    """The samples that `encode` was given, float64 [n, columns]."""
    flat = np.frombuffer(base64.b64decode(text), "<f8")
    return flat.reshape(-1, len(COLUMNS)).astype(np.float64)


def read_marks(told: Iterable[Any]) -> list[Mark]:
    """Marks from an answer of `Record.tell`."""
    return [
        Mark(number, kind, name, begin, float("nan") if end is None else end)
        for number, kind, name, begin, end in told
    ]


RECORD = Record()
