"""The line of the user's that called something, as a person looks for it."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

import mlx.core as mx

# Gives "Cell In[5], line 3" for a file name and a line number; "" for a file it does not know.
NameLine = Callable[[str, int], str]

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MLX = os.path.dirname(os.path.abspath(mx.__file__)) + os.sep


class Line(NamedTuple):
    """A line of a program.

    Attributes
    ----------
    text
        How it is called: ``Cell In[5], line 3``, ``line 3 of the cell``, ``/home/me/run.py:12``.
    source
        What it says; "" where that is not known.
    inside
        The line of MLX's or mlx-lm's Python that it led to; "" where it made the call itself.
    file, number
        As the interpreter has them.
    """

    text: str
    source: str
    inside: str
    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.text} (in {self.inside})" if self.inside else self.text


def calling_line(frame: FrameType | None, name: NameLine | None = None) -> Line:
    """The innermost line from a frame outwards that is neither mlxbench's nor MLX's nor mlx-lm's.

    Parameters
    ----------
    frame
        Where to begin.
    name
        What a notebook calls its cells' lines; without it the file and the line are named.

    Returns
    -------
    Line
        The innermost line of a library where nothing else called; empty where nothing did.
    """
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    innermost = frame
    libraries = _libraries()
    while frame is not None and frame.f_code.co_filename.startswith(libraries):
        frame = frame.f_back
    if innermost is None:
        return Line("", "", "", "", 0)
    found = frame or innermost
    file, number = found.f_code.co_filename, found.f_lineno
    text = (name(file, number) if name is not None else "") or _named(file, number)
    inside = "" if found is innermost else _in_library(innermost)
    return Line(text, linecache.getline(file, number).strip(), inside, file, number)


def _libraries() -> tuple[str, ...]:
    file = getattr(sys.modules.get("mlx_lm"), "__file__", None)
    return (_MLX,) if file is None else (_MLX, os.path.dirname(os.path.abspath(file)) + os.sep)


def _named(file: str, number: int) -> str:
    if "ipykernel_" in file or file.startswith("<ipython"):
        return f"line {number} of the cell"
    return f"{file}:{number}"


def _in_library(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    for root in _libraries():
        if file.startswith(root):
            file = os.path.relpath(file, os.path.dirname(root.rstrip(os.sep)))
    return f"{file}:{frame.f_lineno}"
