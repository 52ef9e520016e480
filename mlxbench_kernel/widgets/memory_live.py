"""The part of the memory view that is live: bars of pools, and the timelines of ranks.

What is drawn, zoomed and selected is the browser's: it has an hour of samples, and so goes on
while the kernel is busy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import numpy as np
import traitlets

from mlxbench_kernel.memory.record import COLUMNS, Mark
from mlxbench_kernel.remote.bar import Bar
from mlxbench_kernel.remote.lateness import how_late
from mlxbench_kernel.remote.memory_feed import MemoryFeed, Seen
from mlxbench_kernel.remote.pool_bars import bars
from mlxbench_kernel.widgets.graph_view import STATIC

SENT = [COLUMNS.index(name) for name in ("time", "active", "cache", "peak", "footprint", "step")]
PART = 6_000  # samples of a rank in one message


class MemoryLive(anywidget.AnyWidget):
    """Shows a feed; `draw` sends what is new of it.

    Parameters
    ----------
    feed
        What is shown.
    limits
        As for `bars`; it may change.
    shown
        Called, on any thread, when a browser shows it and wants all there is (True), and when
        one does no more (False). Others that show it then say so.
    """

    _esm = STATIC / "memory.js"

    bars = traitlets.List(traitlets.Dict()).tag(sync=True)
    ranks = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(
        self,
        feed: MemoryFeed,
        limits: Mapping[int, Mapping[str, float]],
        shown: Callable[[bool], None] = lambda there: None,
    ) -> None:
        self._feed, self._limits, self._shown = feed, limits, shown
        self._again = threading.Event()  # all there is, to a browser that has nothing
        self._sent: dict[int, int] = {}
        self._marks: dict[int, tuple[str, int]] = {}
        super().__init__()
        self.on_msg(self._answer)

    def _answer(self, widget: Any, content: Any, buffers: Any) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind == "ready":
            self._again.set()
        if kind in ("ready", "here"):
            self._shown(True)
        elif kind == "gone":
            self._shown(False)
            self.send({"kind": "who"})

    def draw(self) -> None:
        """Send what is new."""
        if self._again.is_set():
            self._again.clear()
            self._sent, self._marks = {}, {}
        ranks = list(self._feed.ranks)
        self.bars = [_plain(bar) for bar in bars(ranks, self._limits)]
        self.ranks = [
            {"rank": each.rank, "host": each.host, "said": how_late(each)} for each in ranks
        ]
        for each in ranks:
            told = (each.record, each.version)
            if self._marks.get(each.rank) != told:
                self._marks[each.rank] = told
                marks = [_plain_mark(mark) for mark in each.marks]
                self.send({"kind": "marks", "rank": each.rank, "marks": marks})
        while parts := [part for each in ranks if (part := self._part(each)) is not None]:
            about = [{"rank": rank, "first": first} for rank, first, _ in parts]
            self.send({"kind": "samples", "parts": about}, [data for _, _, data in parts])

    def _part(self, seen: Seen) -> tuple[int, int, bytes] | None:
        sent = self._sent.get(seen.rank, 0)
        following, rows = seen.ring.since(sent, PART)
        if not len(rows):
            return None
        self._sent[seen.rank] = following
        data = np.ascontiguousarray(rows[:, SENT], dtype="<f8").tobytes()
        return seen.rank, following - len(rows), data


def _plain(bar: Bar) -> dict[str, Any]:
    """A bar in JSON, which has no NaN."""
    return {
        **vars(bar),
        "segments": [vars(each) for each in bar.segments],
        "markers": [vars(each) for each in bar.markers],
        "swap": None if math.isnan(bar.swap) else bar.swap,
        "unknown": list(bar.unknown),
        "said": list(bar.said),
    }


def _plain_mark(mark: Mark) -> dict[str, Any]:
    end = None if mark.lasts else mark.end
    return {**vars(mark), "end": end}
