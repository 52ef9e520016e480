"""What a stream of text leaves on a screen: ``\\r``, backspace and cursor movement.

Enough of a terminal (ECMA-48) for progress bars: tqdm rewrites a line with ``\\r`` and, for
nested bars, goes down with newlines and up again with ``ESC [ A``.
"""

from __future__ import annotations

import re
from collections import deque

from mlxbench_kernel.kernel.output import ansi

LINE_LIMIT = 20_000  # characters of one line that are kept
ROWS = 16  # how far up a cursor may go

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TOKEN = re.compile(
    r"\x1b\[(?P<parameters>[0-9;:?]*)[ -/]*(?P<final>[@-~])"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1b[@-Z\\^_]"
    r"|(?P<control>[\x00-\x08\x0a-\x1f\x7f])"
    r"|(?P<text>[^\x00-\x08\x0a-\x1f\x7f]+)"
)
_INCOMPLETE = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*|\][^\x07\x1b]{0,200}\x1b?)?\Z")
_MOVE = re.compile(r"\x1b\[[0-9;]*[A-HJKf]")


def shorten(text: str, limit: int) -> str:
    """Text of at most about `limit` characters: beyond, the middle is counted."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return text[:half] + left_out(len(text) - 2 * half) + text[-half:]


def left_out(characters: int) -> str:
    """The mark that stands for the middle of a long text."""
    return f"{ansi.RESET} … {characters:_} characters left out … ".replace("_", " ")


class _Row:
    """One row: a cell is a character, behind its style where it has one."""

    __slots__ = ("cells", "omitted")

    def __init__(self, text: str = "") -> None:
        self.cells: list[str] = list(text)
        self.omitted = 0

    def cut(self) -> int:
        """Drop the middle of a long row; return how many cells went."""
        extra = len(self.cells) - LINE_LIMIT
        if extra > 0:
            del self.cells[LINE_LIMIT // 2 : LINE_LIMIT // 2 + extra]
            self.omitted += extra
        return max(extra, 0)

    def text(self) -> str:
        """The row as text, without blanks at its end."""
        self.cut()
        if not self.omitted:
            return _joined(self.cells).rstrip(" ")
        half = LINE_LIMIT // 2
        middle = left_out(self.omitted)
        return _joined(self.cells[:half]) + middle + _joined(self.cells[half:]).rstrip(" ")


def _joined(cells: list[str]) -> str:
    text = "".join(cells)
    if len(text) == len(cells):
        return text
    parts: list[str] = []
    style = ""
    for cell in cells:
        if cell[:-1] != style:
            parts.append(ansi.RESET if style else "")
            style = cell[:-1]
            parts.append(style)
        parts.append(cell[-1])
    return "".join(parts) + (ansi.RESET if style else "")


class Screen:
    """The unfinished rows of one stream.

    A row is finished once the cursor has left it downwards by more rows than this stream was
    ever seen to come back up.

    Attributes
    ----------
    plain : bool
        Nothing but the beginning of an ordinary line stands there.
    reclaimed : int
        Finished rows that the last `feed` took back, because the cursor went up to them.
    """

    def __init__(self) -> None:
        self.reclaimed = 0
        self._finished: deque[str] = deque(maxlen=ROWS)
        self._style = ""
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._rows = [_Row()]
        self._row = self._column = self._depth = 0
        self._rest = ""
        self._finished.clear()
        self.plain = True

    def feed(self, text: str) -> list[str]:
        """Take in text.

        Parameters
        ----------
        text
            Any piece of the stream; it may end inside a line or an escape sequence.

        Returns
        -------
        list of str
            The rows that are finished now, the first `reclaimed` of them for the second time.
        """
        text = self._rest + text.replace("\r\n", "\n")
        self._rest = ""
        self.reclaimed = 0
        if self.plain and not self._style and not _CONTROL.search(text):
            lines = self._feed_plain(text)
        else:
            lines = self._feed_controls(text)
        self._finished.extend(lines[-ROWS:])
        return lines

    def live(self) -> list[str]:
        """The unfinished rows, top to bottom, without blank ones at the end."""
        rows = [row.text() for row in self._rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def flush(self) -> list[str]:
        """Finish all rows: what `live` gave."""
        rows = self.live()
        self.reset()
        return rows

    def _feed_plain(self, text: str) -> list[str]:
        if "\n" not in text:
            self._write(text)
            return []
        lines = text.split("\n")
        row = self._rows[0]
        if row.cells:
            self._write(lines[0])
            lines[0] = row.text()
        last = lines.pop()
        self._rows = [_Row()]
        self._column = 0
        self._write(last)
        if len(text) > LINE_LIMIT:
            lines = [shorten(line, LINE_LIMIT) for line in lines]
        return lines

    def _feed_controls(self, text: str) -> list[str]:
        incomplete = _INCOMPLETE.search(text)
        if incomplete:
            self._rest = incomplete.group()
            text = text[: incomplete.start()]
        for token in _TOKEN.finditer(_without_redraws(text)):
            kind = token.lastgroup
            if kind == "text":
                self._write(token.group())
            elif kind == "control":
                self._control(token.group())
            elif kind == "final":
                self._sequence(token["final"], token["parameters"])
        count = max(0, self._row - self._depth)
        lines = [row.text() for row in self._rows[:count]]
        del self._rows[:count]
        self._row -= count
        self.plain = len(self._rows) == 1 and not self._depth and not self._rows[0].cells
        return lines

    def _write(self, text: str) -> None:
        row = self._rows[self._row]
        if len(text) > 2 * LINE_LIMIT:
            row.omitted += len(text) - 2 * LINE_LIMIT
            text = text[:LINE_LIMIT] + text[-LINE_LIMIT:]
        cells = row.cells
        if self._column > len(cells):
            cells.extend(" " * (self._column - len(cells)))
        end = self._column + len(text)
        style = self._style
        cells[self._column : end] = [style + c for c in text] if style else text
        self._column = end
        if len(cells) > 2 * LINE_LIMIT:
            self._column = max(0, self._column - row.cut())

    def _control(self, character: str) -> None:
        if character == "\n":
            self._row += 1
            self._column = 0
            if self._row == len(self._rows):
                self._rows.append(_Row())
        elif character == "\r":
            self._column = 0
        elif character == "\b":
            self._column = max(0, self._column - 1)

    def _sequence(self, final: str, parameters: str) -> None:
        if final == "m":
            self._style = ansi.restyle(self._style, parameters)
            return
        number = int(parameters) if parameters.isdigit() else 0
        if final in "AF":
            self._up(max(1, number))
        elif final in "BE":
            self._row = min(self._row + max(1, number), len(self._rows) - 1)
        elif final == "C":
            self._column = min(self._column + max(1, number), LINE_LIMIT)
        elif final == "D":
            self._column = max(0, self._column - max(1, number))
        elif final == "G":
            self._column = min(max(0, number - 1), LINE_LIMIT)
        elif final == "K":
            self._erase_line(number)
        elif final in "Hf":
            self._row = 0
        elif final == "J":
            self._erase_line(0 if number == 0 else 2)
            first = self._row + 1 if number == 0 else 0
            for row in self._rows[first:]:
                row.cells.clear()
        if final in "EFHf":
            self._column = 0

    def _up(self, count: int) -> None:
        while count > self._row and self._finished and len(self._rows) < ROWS:
            self._rows.insert(0, _row_of(self._finished.pop()))
            self._row += 1
            self.reclaimed += 1
        self._row = max(0, self._row - count)
        self._depth = max(self._depth, min(len(self._rows) - 1 - self._row, ROWS))

    def _erase_line(self, part: int) -> None:
        cells = self._rows[self._row].cells
        if part == 0:
            del cells[self._column :]
        else:
            count = len(cells) if part == 2 else min(self._column + 1, len(cells))
            cells[:count] = " " * count


def _row_of(text: str) -> _Row:
    """The row that a finished line came from."""
    row = _Row()
    style = ""
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "final":
            style = ansi.restyle(style, token["parameters"])
        elif token.lastgroup == "text":
            row.cells.extend([style + c for c in token.group()])
    return row


def _without_redraws(text: str) -> str:
    """Drop redraws of a line that later ones hide, so that a thousand cost as much as a few."""
    if len(text) < 4 * LINE_LIMIT or text.count("\r") < 100:
        return text
    lines = text.split("\n")
    for position, line in enumerate(lines):
        parts = line.split("\r")
        moves = [part for part in parts[1:-4] if _MOVE.search(part)]
        lines[position] = "\r".join([*parts[:1], *moves, *parts[1:][-4:]])
    return "\n".join(lines)
