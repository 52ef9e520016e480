"""What a cell puts out on its ranks, as one readable whole."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from mlxbench_kernel.kernel.output.failure import CellFailure, ErrorLog, RankError
from mlxbench_kernel.kernel.output.merge import HEAD, TAIL, Merge, RankPlace
from mlxbench_kernel.kernel.output.nodes import Node
from mlxbench_kernel.kernel.output.screen import ROWS, Screen, shorten

TEXT_LIMIT = 100_000  # characters of a text bundle that are kept
STREAMS = ("stdout", "stderr")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


class _Stream:
    """One stream of one rank: its screen, and the nodes of its rows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.screen = Screen()
        self.live: list[Node] = []
        self.finished: deque[Node] = deque(maxlen=ROWS)


class _Rank:
    """What is known of one rank."""

    def __init__(self, place: RankPlace) -> None:
        self.place = place
        self.streams = {name: _Stream(name) for name in STREAMS}
        self.displays: dict[str, list[Node]] = {}
        self.lines = 0
        self.clear_next = False
        self.done = False


class CellOutput:
    """Output of one cell: takes in the ranks' messages, merges what they say alike.

    Methods may be called from any thread. Nothing is shown from here: presenters read it
    under `lock`.

    Parameters
    ----------
    ranks
        Ranks the cell runs on.
    size
        Ranks of the cluster.
    execution_count
        The notebook's number of the cell, for tracebacks.
    first_line
        Line of the notebook's cell where the code that was sent begins: 2 below a
        ``%%mlx_dist`` line.

    Attributes
    ----------
    ranks : list of int
        Ranks of the cell, ascending.
    size : int
        Ranks of the cluster.
    lock : threading.RLock
        Held while anything is read or changed.
    merge : Merge
        The merged items.
    version : int
        Grows with every change.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        size: int,
        *,
        execution_count: int | None = None,
        first_line: int = 1,
    ) -> None:
        self.ranks = sorted(ranks)
        self.size = size
        self.lock = threading.RLock()
        self.version = 0
        self.merge = Merge(self.ranks)
        self._ranks = {rank: _Rank(self.merge.places[rank]) for rank in self.ranks}
        self._errors = ErrorLog(size, execution_count, first_line)
        # Of one piece of text, lines beyond this many are not even looked at: what a rank
        # may keep of the tail at most.
        self._keep = max(TAIL // max(len(self.ranks), 1), TAIL // 8)

    def message(self, rank: int, kind: str, content: dict[str, Any]) -> None:
        """Take in one iopub message (Jupyter messaging 5.4); other types are ignored.

        Parameters
        ----------
        rank
            Who sent it.
        kind
            Message type, as ``"stream"``.
        content
            Content of the message.
        """
        data, metadata = content.get("data", {}), content.get("metadata", {})
        if kind == "stream":
            self.stream(rank, content["name"], content["text"])
        elif kind == "display_data":
            self.display(rank, data, metadata, content.get("transient"))
        elif kind == "update_display_data":
            self.update(rank, data, metadata, content.get("transient"))
        elif kind == "execute_result":
            self.result(rank, data, metadata)
        elif kind == "clear_output":
            self.clear(rank, content.get("wait", False))
        elif kind == "error":
            self.error(rank, content["ename"], content["evalue"], content["traceback"])

    def stream(self, rank: int, name: str, text: str) -> None:
        """A piece of stdout or stderr, cut anywhere."""
        with self.lock:
            source = self._begin(rank)
            stream = source.streams[name]
            for piece in self._pieces(source, stream, text):
                self._feed(source, stream, piece)
            self.merge.trim()

    def display(
        self,
        rank: int,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        transient: dict[str, Any] | None = None,
    ) -> None:
        """A mime bundle; with ``display_id`` in `transient`, `update` may change it."""
        with self.lock:
            node = self._bundle(rank, "display", data, metadata)
            display_id = (transient or {}).get("display_id")
            if display_id is not None:
                node.family = node.family or object()
                nodes = self._ranks[rank].displays.setdefault(display_id, [])
                nodes[:] = [*(n for n in nodes if n.mask), node]

    def update(
        self,
        rank: int,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        transient: dict[str, Any] | None = None,
    ) -> None:
        """Change a display of the same rank; unknown ids are ignored, as Jupyter does."""
        with self.lock:
            source = self._begin(rank)
            nodes = source.displays.get((transient or {}).get("display_id", ""), [])
            bit = source.place.bit
            nodes[:] = [
                self._updated(source.place, node, data, metadata or {})
                for node in nodes
                if node.mask & bit
            ]

    def result(
        self, rank: int, data: dict[str, Any], metadata: dict[str, Any] | None = None
    ) -> None:
        """The value of the cell's last expression, as a mime bundle."""
        with self.lock:
            self._bundle(rank, "result", data, metadata)

    def page(self, rank: int, data: dict[str, Any]) -> None:
        """What ``?`` would put into the pager: data of a reply's ``page`` payload.

        Addresses in memory, in which alone the ranks' answers would differ, are left out.
        """
        without = {kind: _ADDRESS.sub("0x…", str(text)) for kind, text in data.items()}
        with self.lock:
            self._bundle(rank, "display", without, None)

    def clear(self, rank: int, wait: bool = False) -> None:
        """Remove what the rank has put out; with `wait`, when it puts out something else."""
        with self.lock:
            source = self._ranks[rank]
            if wait:
                source.clear_next = True
                return
            source.clear_next = False
            self.merge.clear(source.place)
            source.streams = {name: _Stream(name) for name in STREAMS}
            source.displays.clear()
            source.lines = 0
            self.version += 1

    def error(self, rank: int, ename: str, evalue: str, traceback: list[str]) -> None:
        """An exception that ended the cell on a rank."""
        with self.lock:
            self._errors.add(rank, ename, evalue, traceback)
            self.version += 1

    def done(self, rank: int) -> None:
        """The cell has ended on a rank: its unfinished lines are final."""
        with self.lock:
            source = self._ranks[rank]
            for stream in source.streams.values():
                self._settle(source, stream, stream.screen.flush(), [])
            source.done = True
            self.version += 1

    @property
    def errors(self) -> list[RankError]:
        """Distinct errors, each with the ranks that raised it."""
        with self.lock:
            return self._errors.distinct()

    def failure(self) -> CellFailure | None:
        """One exception for all errors; None if there were none."""
        with self.lock:
            return self._errors.failure()

    def passed(self, node: Node) -> bool:
        """Whether every rank is in a node, has gone past it or is done.

        For a display that has been updated after it was shown: whether its ranks are done.
        """
        sources = self._ranks.values()
        if node.revised:
            return all(source.done for source in sources if node.mask & source.place.bit)
        return all(
            node.mask & source.place.bit or source.done or source.place.last > node.place
            for source in sources
        )

    @property
    def left_out(self) -> dict[int, int]:
        """Lines that are not kept, by rank."""
        return {rank: source.place.left_out for rank, source in self._ranks.items()}

    def _begin(self, rank: int) -> _Rank:
        source = self._ranks[rank]
        if source.clear_next:
            self.clear(rank)
        self.version += 1
        return source

    def _pieces(self, source: _Rank, stream: _Stream, text: str) -> list[str]:
        """The text, or its beginning and end where it has more lines than can be kept."""
        count = text.count("\n")
        head = max(0, HEAD - source.lines)
        source.lines += count
        if count <= head + self._keep:
            return [text]
        if head:
            rest = text.split("\n", head)[-1]
            self._feed(source, stream, text[: len(text) - len(rest)])
            text = rest
        skipped, *end = text.rsplit("\n", self._keep + 1)
        stream.screen.reset()
        stream.finished.clear()
        for node in stream.live:
            self.merge.leave(source.place, node)
        stream.live.clear()
        self.merge.skip(source.place, skipped.count("\n") + 1)
        return ["\n".join(end)]

    def _feed(self, source: _Rank, stream: _Stream, text: str) -> None:
        lines = stream.screen.feed(text)
        for _ in range(stream.screen.reclaimed):
            node = self.merge.take_back(source.place, stream.finished.pop())
            stream.live.insert(0, node or self._begin_line(source, stream, ""))
        self._settle(source, stream, lines, stream.screen.live())

    def _settle(self, source: _Rank, stream: _Stream, finished: list[str], live: list[str]) -> None:
        """Bring the nodes of a stream to its finished and unfinished rows."""
        now = time.monotonic()
        place, merge, name = source.place, self.merge, stream.name
        nodes = stream.live
        for row, line in zip(nodes, finished, strict=False):
            self._rewrite(row, line)
            row.touched = now
            stream.finished.append(merge.end(place, row, f"{name}\0{line}"))
        taken = min(len(nodes), len(finished))
        del nodes[:taken]
        for line in finished[taken:]:
            node = Node(0, place.bit, name, line, f"{name}\0{line}", _weight(line), now)
            stream.finished.append(merge.put(place, node))
        for node in nodes[len(live) :]:
            merge.leave(place, node)
        del nodes[len(live) :]
        for row, line in zip(nodes, live, strict=False):
            self._rewrite(row, line)
        nodes.extend(self._begin_line(source, stream, line) for line in live[len(nodes) :])

    def _begin_line(self, source: _Rank, stream: _Stream, line: str) -> Node:
        node = Node(0, source.place.bit, stream.name, line, None, _weight(line), time.monotonic())
        self.merge.begin(source.place, node)
        return node

    def _rewrite(self, node: Node, line: str) -> None:
        if node.text != line:
            node.text = line
            node.rendered = None
            node.shown = 0
            self.merge.nodes.reweigh(node, _weight(line))

    def _bundle(
        self, rank: int, kind: str, data: dict[str, Any], metadata: dict[str, Any] | None
    ) -> Node:
        source = self._begin(rank)
        out = source.streams["stdout"]
        if out.screen.plain:  # the beginning of a line stands before what is displayed
            self._settle(source, out, out.screen.flush(), [])
        node = _node(source.place.bit, kind, data, metadata or {})
        node = self.merge.put(source.place, node)
        self.merge.trim()
        return node

    def _updated(
        self, place: RankPlace, old: Node, data: dict[str, Any], metadata: dict[str, Any]
    ) -> Node:
        """The node that stands for a rank's display after an update."""
        new = _node(place.bit, old.kind, data, metadata)
        new.family = old.family
        if new.key == old.key:
            return old
        nodes = self.merge.nodes
        for sibling in self._family(old):
            if sibling.key == new.key:
                sibling.mask |= place.bit
                sibling.rendered = None
                self.merge.leave(place, old)
                return sibling
        if old.mask != place.bit:
            new.place = nodes.place_after(old.place)
            self.merge.leave(place, old)
            nodes.add(new)
            return new
        nodes.rekey(old, new.key)
        nodes.reweigh(old, new.weight)
        old.text, old.data, old.metadata = new.text, new.data, new.metadata
        old.rendered, old.revised, old.shown = None, old.revised or bool(old.shown), 0
        return old

    def _family(self, node: Node) -> list[Node]:
        """The nodes next to each other that updates have made of one."""
        items = self.merge.nodes.items
        at = items.index(node)
        first = last = at
        while first and items[first - 1].family is node.family:
            first -= 1
        while last + 1 < len(items) and items[last + 1].family is node.family:
            last += 1
        return items[first : last + 1]


def _weight(text: str) -> int:
    return 1 + len(text) // 256


def _node(bit: int, kind: str, data: dict[str, Any], metadata: dict[str, Any]) -> Node:
    content = json.dumps([data, metadata], sort_keys=True, default=repr)
    key = f"{kind}\0{hashlib.blake2b(content.encode()).hexdigest()}"
    text = None
    weight = 1 + len(content) // 16384
    if set(data) == {"text/plain"}:
        text = shorten(str(data["text/plain"]), TEXT_LIMIT)
        data = {"text/plain": text}
        weight = _weight(text)
    return Node(0, bit, kind, text, key, weight, time.monotonic(), data, metadata)
