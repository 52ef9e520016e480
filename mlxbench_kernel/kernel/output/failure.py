"""Errors of the ranks: each distinct one once, and one exception for all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlxbench_kernel.errors import CellError
from mlxbench_kernel.kernel.output import ansi
from mlxbench_kernel.kernel.output.ranks import format_ranks

SHOWN = 5  # distinct errors that are shown with their traceback
LINES = 200  # of one traceback
_MESSAGE = 60  # characters of a message where several errors share a line

_E = r"(?:\x1b\[[\d;]*m)*"
# The two things that head a frame of IPython's traceback (IPython.core.ultratb, 8.7 to 9.18):
# "Cell In[3], line 4" and "File /path/to/module.py:346".
_CELL = re.compile(rf"{_E}Cell{_E} {_E}In ?\[(\d+)\]{_E}(?:{_E}, line (\d+))?")
_FILE = re.compile(r"\s*File (\S+?):\d+")
# Where IPython numbers the lines of a frame: "      3 code", "----> 4 code", "   (...)    7".
_GUTTER = re.compile(rf"^({_E}(?:-+> |\s+(?:\(\.\.\.\){_E}\s+)?){_E})(\d+)(?={_E}(?:\s|$))")
_MACHINERY = re.compile(r"[/\\](?:IPython|ipykernel|ipyparallel|mlxbench_kernel)[/\\]")
# What a syntax error says of its file; for a cell that is a made-up name.
_SYNTAX_FILE = re.compile(r" \((?:<ipython-input-[^>]*>|\d+\.py), line \d+\)$")
_VARYING = [
    (re.compile(r"0x[0-9a-fA-F]+"), "0x"),
    (re.compile(r"\bIn ?\[\d+\]"), "In[]"),
    (re.compile(r"\(MLX holds [^)]*\)"), ""),
    (re.compile(r"(?:/private)?/(?:tmp|var/folders)/[^\s:'\")]+"), "/tmp"),
]


@dataclass(frozen=True)
class RankError:
    """One distinct error.

    Attributes
    ----------
    ranks
        Who raised it, ascending.
    ename, evalue
        Class and message of the exception.
    traceback
        Lines of IPython's traceback without the kernel's own frames, its lines numbered
        like those of the notebook's cell.
    line
        Line of the cell that it came from, None where the traceback does not say.
    """

    ranks: tuple[int, ...]
    ename: str
    evalue: str
    traceback: tuple[str, ...]
    line: int | None

    @property
    def summary(self) -> str:
        """``ZeroDivisionError: division by zero``: class and first line of the message."""
        message = _SYNTAX_FILE.sub("", self.evalue.strip().split("\n")[0])
        return f"{self.ename}: {message}" if message else self.ename


class CellFailure(CellError):
    """A cell raised on one or more ranks; shows each distinct error once.

    Parameters
    ----------
    errors
        The distinct errors.
    size
        Ranks of the cluster.

    Attributes
    ----------
    errors : tuple of RankError
        The distinct errors, in order of their first rank.
    """

    def __init__(self, errors: list[RankError], size: int) -> None:
        self.errors = tuple(errors)
        super().__init__(_first_line(self.errors, size))

    def _render_traceback_(self) -> list[str]:
        lines = []
        if len(self.errors) > 1:
            lines += [f"{ansi.RED}{type(self).__name__}{ansi.RESET}: {self}", ""]
        for error in self.errors[:SHOWN]:
            label = f"[{format_ranks(error.ranks)}]"
            lines += [f"{ansi.RED}{label} {error.ename}{ansi.RESET}", *error.traceback, ""]
        for error in self.errors[SHOWN:]:
            lines.append(f"{ansi.RED}[{format_ranks(error.ranks)}]{ansi.RESET} {error.summary}")
        return lines[:-1] if lines[-1] == "" else lines


class ErrorLog:
    """Errors as they come.

    Parameters
    ----------
    size
        Ranks of the cluster.
    execution_count
        The notebook's number of the cell; None calls it "This cell".
    first_line
        Line of the notebook's cell where the code that was sent begins.
    """

    def __init__(self, size: int, execution_count: int | None, first_line: int) -> None:
        self._size = size
        self._cell = "This cell" if execution_count is None else f"Cell In[{execution_count}]"
        self._shift = first_line - 1
        self._errors: dict[tuple[str, str], tuple[set[int], str, str, list[str]]] = {}

    def add(self, rank: int, ename: str, evalue: str, traceback: list[str]) -> None:
        """Take in the error of a rank."""
        key = (ename, _comparable("\n".join([evalue, *traceback])))
        ranks, *_ = self._errors.setdefault(key, (set(), ename, evalue, traceback))
        ranks.add(rank)

    def distinct(self) -> list[RankError]:
        """The distinct errors, in order of their first rank."""
        errors = []
        for ranks, ename, evalue, traceback in self._errors.values():
            shown, line = self._readable(traceback)
            if not shown:
                shown = [f"{ename}: {evalue}"]
            errors.append(RankError(tuple(sorted(ranks)), ename, evalue, tuple(shown), line))
        return sorted(errors, key=lambda error: error.ranks)

    def failure(self) -> CellFailure | None:
        """One exception for all; None if there were none."""
        errors = self.distinct()
        return CellFailure(errors, self._size) if errors else None

    def _readable(self, traceback: list[str]) -> tuple[list[str], int | None]:
        """The traceback as the notebook's user knows the cell, and the line in the cell."""
        entries = list(traceback)
        while entries and _is_headline(entries[0]):
            del entries[0]
        while entries and _is_machinery(entries[0]):
            del entries[0]
        current = next((m[1] for entry in entries if (m := _cell(entry))), None)
        line = None
        shown: list[str] = []
        for entry in entries:
            match = _cell(entry)
            if match is None:
                shown += entry.split("\n")
                continue
            here = match[1] == current
            if here and match[2]:
                line = int(match[2]) + self._shift
            shown += self._frame(entry, match, here).split("\n")
        if len(shown) > LINES:
            half = LINES // 2
            shown[half:-half] = [f"… {len(shown) - 2 * half} lines left out …"]
        return shown, line

    def _frame(self, entry: str, match: re.Match[str], here: bool) -> str:
        """One frame in a cell, named and numbered for the notebook's user."""
        shift = self._shift if here else 0
        number = f", line {int(match[2]) + shift}" if match[2] else ""
        cell = self._cell if here else "Earlier cell"
        first = entry[: match.start()] + f"\x1b[36m{cell}\x1b[39m{number}" + entry[match.end() :]
        head, *body = first.split("\n")
        # A syntax error shows bare code, indented like its heading: nothing to renumber there.
        if shift and not ansi.strip(head).startswith(" "):
            body = [_GUTTER.sub(lambda m: _renumbered(m, shift), text) for text in body]
        return "\n".join([head, *body])


def _renumbered(match: re.Match[str], shift: int) -> str:
    before, number = match[1], str(int(match[2]) + shift)
    for _ in range(len(number) - len(match[2])):
        before = re.sub(r"[ -]", "", before, count=1)
    return before + number


def _cell(entry: str) -> re.Match[str] | None:
    """Where a frame names its cell; the message of an error may name one too, as its user does."""
    first = _first(entry)
    return _CELL.search(first) if ansi.strip(first).lstrip().startswith("Cell ") else None


def _first(entry: str) -> str:
    return entry.split("\n", 1)[0]


def _is_headline(entry: str) -> bool:
    text = ansi.strip(entry)
    return set(text.strip()) == {"-"} or "Traceback (most recent call last)" in text


def _is_machinery(entry: str) -> bool:
    match = _FILE.match(ansi.strip(entry))
    return match is not None and _MACHINERY.search(match[1]) is not None


def _comparable(text: str) -> str:
    text = ansi.strip(text)
    for pattern, same in _VARYING:
        text = pattern.sub(same, text)
    return text


def _first_line(errors: tuple[RankError, ...], size: int) -> str:
    if len(errors) == 1:
        error = errors[0]
        line = "" if error.line is None else f" (line {error.line} of the cell)"
        return f"{_who(error.ranks, size)} raised {error.summary}{line}"
    ranks = sorted({rank for error in errors for rank in error.ranks})
    if len({error.summary for error in errors}) == 1 and all(error.line for error in errors):
        places = [f"[{format_ranks(error.ranks)}] line {error.line}" for error in errors]
        return f"{_who(ranks, size)} raised {errors[0].summary}: {', '.join(places)} of the cell"
    parts = []
    for error in errors[:SHOWN]:
        summary = error.summary
        if len(summary) > _MESSAGE:
            summary = summary[: _MESSAGE - 1] + "…"
        parts.append(f"[{format_ranks(error.ranks)}] {summary}")
    if len(errors) > SHOWN:
        parts.append(f"and {len(errors) - SHOWN} more")
    return f"{_who(ranks, size)} raised {len(errors)} different errors: {'; '.join(parts)}"


def _who(ranks: tuple[int, ...] | list[int], size: int) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} of {size}"
    if len(ranks) == size:
        return f"all {size} ranks"
    return f"ranks {format_ranks(ranks)} of {size}"
