"""What the last cells of a rank put out, for a notebook that was not there when they did.

Bounded in cells and in characters: what is oldest goes first, and how much went is kept.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxbench_kernel.rank.requests import OWN_CELL

CELLS = 20
CHARACTERS = 1_000_000
ITEMS = 5_000  # messages of one cell, however short
PIECE = 4_096  # characters up to which pieces of a stream are joined as they come
# What `Cluster` sends with a cell, in the metadata of its request: when it was sent (Unix time
# of the notebook). It is the same for all ranks of a cell, and grows from cell to cell.
SENT = "mlxbench_sent"
OUTPUT = frozenset(
    {"stream", "display_data", "update_display_data", "execute_result", "clear_output", "error"}
)
_FOLLOWED = OUTPUT | {"execute_input", "execute_reply"}


@dataclass(eq=False)
class _Item:
    """One message, or the pieces of one stream that came in a row."""

    kind: str
    content: dict[str, Any]
    size: int
    pieces: deque[str] = field(default_factory=deque)

    def message(self) -> tuple[str, dict[str, Any]]:
        if self.kind == "stream":
            return self.kind, {**self.content, "text": "".join(self.pieces)}
        return self.kind, self.content

    @property
    def display(self) -> str | None:
        """The id under which a display can be updated."""
        found: str | None = self.content.get("transient", {}).get("display_id")
        return found


@dataclass
class _Cell:
    """One cell with what it has put out."""

    code: str
    sent: float
    running: bool = True
    items: deque[_Item] = field(default_factory=deque)
    dropped: int = 0
    clear_next: bool = False


class History:
    """Output of the last cells of this rank; taken in as it is sent, from any thread.

    Parameters
    ----------
    cells
        How many cells are kept at most.
    characters
        How many characters they may hold together.
    """

    def __init__(self, cells: int = CELLS, characters: int = CHARACTERS) -> None:
        self._most_cells = cells
        self._most = characters
        self._cells: dict[str, _Cell] = {}  # by the id of the request
        self._size = 0
        self._lock = threading.Lock()

    def follow(self, session: Any) -> None:
        """Take in what a session (`jupyter_client.session.Session`) sends from now on.

        What a fork of this process prints comes past the session and is not kept.
        """
        send = session.send
        own = os.getpid()

        def send_and_keep(
            stream: Any, message: Any, content: Any = None, parent: Any = None, *rest: Any,
            **more: Any,
        ) -> Any:  # fmt: skip
            whole = isinstance(message, dict)
            kind = message["header"]["msg_type"] if whole else message
            if kind in _FOLLOWED and os.getpid() == own:  # a fork sends through its parent
                if whole:
                    self.take(kind, message["content"], message.get("parent_header"))
                else:
                    self.take(kind, content, parent)
            return send(stream, message, content, parent, *rest, **more)

        session.send = send_and_keep

    def take(self, kind: str, content: dict[str, Any], parent: Mapping[str, Any] | None) -> None:
        """Take in one message.

        Parameters
        ----------
        kind, content
            Type and content of the message (Jupyter messaging 5.4).
        parent
            The request that it belongs to, or its header.
        """
        header = (parent or {}).get("header", parent) or {}
        request = str(header.get("msg_id"))
        with self._lock:
            if kind == "execute_input":
                if content["code"].startswith(OWN_CELL):
                    return
                sent = (parent or {}).get("metadata", {}).get(SENT, 0.0)
                self._begin(request, _Cell(content["code"], sent))
                return
            cell = self._cells.get(request)
            if cell is None:  # of no cell, or of one that is too long ago
                return
            if kind == "execute_reply":
                self._end(cell, content)
            else:
                self._put(cell, kind, content)

    def _begin(self, request: str, cell: _Cell) -> None:
        self._cells[request] = cell
        while len(self._cells) > self._most_cells:
            oldest = self._cells.pop(next(iter(self._cells)))
            self._size -= sum(item.size for item in oldest.items)

    def _end(self, cell: _Cell, content: dict[str, Any]) -> None:
        cell.running = False
        for payload in content.get("payload", []):
            if payload.get("source") == "page":
                self._put(cell, "page", {"data": payload["data"]})

    def _put(self, cell: _Cell, kind: str, content: dict[str, Any]) -> None:
        if kind == "clear_output":
            cell.clear_next = True
            if content.get("wait"):
                return
        if cell.clear_next:
            cell.clear_next = False
            self._size -= sum(item.size for item in cell.items)
            cell.items.clear()
            cell.dropped = 0
        if kind == "clear_output":
            return
        if kind == "stream":
            self._put_text(cell, content)
        else:
            item = _Item(kind, content, _size(content))
            if kind == "update_display_data":
                self._forget_update(cell, item.display)
            cell.items.append(item)
            self._size += item.size
        self._make_room()

    def _put_text(self, cell: _Cell, content: dict[str, Any]) -> None:
        text = content["text"]
        last = cell.items[-1] if cell.items else None
        if last is None or last.kind != "stream" or last.content["name"] != content["name"]:
            last = _Item("stream", {"name": content["name"]}, 0)
            cell.items.append(last)
        if last.pieces and len(last.pieces[-1]) < PIECE:
            last.pieces[-1] += text
        else:
            last.pieces.append(text)
        last.size += len(text)
        self._size += len(text)

    def _forget_update(self, cell: _Cell, display: str | None) -> None:
        """Of the updates of a display the last one is enough."""
        for item in cell.items:
            if item.kind == "update_display_data" and item.display == display:
                cell.items.remove(item)
                self._size -= item.size
                return

    def _make_room(self) -> None:
        for cell in self._cells.values():
            while self._size > self._most and cell.items:
                self._drop_oldest(cell, self._size - self._most)
            while len(cell.items) > ITEMS:
                self._drop_oldest(cell, cell.items[0].size)

    def _drop_oldest(self, cell: _Cell, excess: int) -> None:
        """Drop the oldest display, or as much of the oldest text as has to go."""
        item = cell.items[0]
        if item.kind != "stream":
            cell.items.popleft()
            gone = item.size
        elif len(item.pieces[0]) <= excess:
            gone = len(item.pieces.popleft())
        else:
            gone = excess
            item.pieces[0] = item.pieces[0][excess:]
        item.size -= gone
        if item.kind == "stream" and not item.pieces:
            cell.items.popleft()
        cell.dropped += gone
        self._size -= gone

    def last(self, cells: int | None = None) -> list[dict[str, Any]]:
        """The last cells, oldest first.

        Parameters
        ----------
        cells
            How many; all that are kept by default.

        Returns
        -------
        list of dict
            ``code``; ``sent``, when the notebook sent it (Unix time); ``running``;
            ``messages``, pairs of kind and content, kinds as in Jupyter messaging 5.4 and
            ``"page"``; ``dropped``, the number of characters before them that are not kept.
        """
        with self._lock:
            found = list(self._cells.values())
            return [
                {
                    "code": cell.code,
                    "sent": cell.sent,
                    "running": cell.running,
                    "messages": [item.message() for item in cell.items],
                    "dropped": cell.dropped,
                }
                for cell in (found if cells is None else found[len(found) - cells :])
            ]


def _size(content: dict[str, Any]) -> int:
    """Characters of a message, or a little less: what is no text is not counted exactly."""
    data = content.get("data") or content
    return sum(len(value if isinstance(value, str) else str(value)) for value in data.values())
