"""The line of the user's that called something, as a person looks for it."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import NamedTuple

# Gives "Cell In[5], line 3" for a file name and a line number; "" for a file it does not know.
NameLine = Callable[[str, int], str]

# What code is called that was typed after a magic, with its text.
EXPRESSION = "<%mlx_graph {}>"

_namers: list[NameLine] = []  # one at most


def name_cells(name: NameLine) -> None:
    """Say what the lines of this process's cells are called."""
    _namers[:] = [name]


class Line(NamedTuple):
    """A line of a program.

    Attributes
    ----------
    text
        How it is called: ``Cell In[5], line 3``, ``line 3 of the cell``, ``/home/me/run.py:12``.
    inside
        The line of MLX's or mlx-lm's Python that it led to; "" where it made the call itself.
    function
        The name of the function that it is in.
    file, number
        As the interpreter has them.
    """

    text: str
    inside: str
    function: str
    file: str
    number: int

    @property
    def source(self) -> str:
        """What it says; "" where that is not known."""
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        return f"{self.text} (in {self.inside})" if self.inside else self.text


def calling_line(frame: FrameType | None) -> Line:
    """The innermost line from a frame outwards that is neither mlxbench's nor MLX's nor mlx-lm's.

    Parameters
    ----------
    frame
        Where to begin.

    Returns
    -------
    Line
        The innermost line of a library where nothing else called; empty where nothing did.
    """
    own = _folder(__file__)
    while frame is not None and frame.f_code.co_filename.startswith(own):
        frame = frame.f_back
    innermost = frame
    others = (own, *_libraries())  # between the user and a library may be a capture
    while frame is not None and frame.f_code.co_filename.startswith(others):
        frame = frame.f_back
    if innermost is None:
        return Line("", "", "", "", 0)
    found = frame or innermost
    file, number = found.f_code.co_filename, found.f_lineno
    inside = "" if found is innermost else _in_library(innermost)
    return Line(_named(file, number), inside, found.f_code.co_name, file, number)


def _libraries() -> tuple[str, ...]:
    names = ("mlx.core", "mlx_lm", "IPython")
    files = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    return tuple(_folder(file) for file in files if file is not None)


@cache
def _folder(file: str) -> str:
    return os.path.dirname(os.path.abspath(file)) + os.sep


def _named(file: str, number: int) -> str:
    for name in _namers:
        if text := name(file, number):
            return text
    if file.startswith(EXPRESSION[:2]):
        return file[1:-1]
    if "ipykernel_" in file or file.startswith("<"):
        return f"line {number} of the cell"
    return f"{file}:{number}"


def _in_library(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    for root in _libraries():
        if file.startswith(root):
            file = os.path.relpath(file, os.path.dirname(root.rstrip(os.sep)))
    return f"{file}:{frame.f_lineno}"
