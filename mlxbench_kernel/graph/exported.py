"""What `to_mlxfn` has written: the function, and a C++ program beside it that runs it."""

from __future__ import annotations

import json
import shlex
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlxbench_kernel.units import format_bytes

PROGRAM = Path(__file__).with_name("program")
_MARK = " Written by mlxbench, which writes it anew only while it is unchanged: "


@dataclass(frozen=True)
class Argument:
    """An array that a function takes or gives.

    Attributes
    ----------
    name
        Of an input the parameter, as ``x`` or ``params.layers.0.w``; of an output the place in
        what is returned, as ``output``, ``0`` or ``logits``.
    shape, dtype
        As ``(4, 8)`` and ``float32``.
    keyword
        Whether it is given by name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    keyword: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Exported:
    """The files of a function; printed, how to go on with them.

    Attributes
    ----------
    function
        The file for ``mx.import_function``.
    program, cmake, example
        A C++ program that runs it, what CMake builds that with, and the example inputs, by name.
    nbytes
        Bytes of `function`: the parameters that the function uses are in it.
    inputs, outputs : tuple of Argument
        What the function takes, by position first, and gives.
    notes : tuple of str
        What else there is to know, a line each.
    """

    function: Path
    program: Path
    cmake: Path
    example: Path
    nbytes: int
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    notes: tuple[str, ...] = ()

    @property
    def compile(self) -> list[str]:
        """The command that compiles the program without CMake, in the folder of the files."""
        folder = Path(str(mx.__file__)).parent
        return [
            "c++", "-std=c++20", "-O2", f"-I{folder / 'include'}", self.program.name,
            f"-L{folder / 'lib'}", "-lmlx", f"-Wl,-rpath,{folder / 'lib'}",
            "-o", self.function.stem,
        ]  # fmt: skip

    @property
    def build(self) -> list[list[str]]:
        """The commands that build it with CMake, there too; the program is then in ``build``."""
        python = f"-DPython_EXECUTABLE={sys.executable}"
        return [["cmake", "-S", ".", "-B", "build", python], ["cmake", "--build", "build"]]

    def __str__(self) -> str:
        name = self.function.stem
        taken = ", ".join(map(str, self.inputs)) or "nothing"
        build = " && ".join(map(shlex.join, self.build))
        return "\n".join(
            (
                f"{self.function} ({format_bytes(self.nbytes)}, with the parameters it uses)",
                f"  takes {taken}",
                f"  gives {', '.join(map(str, self.outputs))}",
                *(f"  {note}" for note in self.notes),
                f"In Python: mx.import_function({str(self.function)!r})",
                f"In C++, with {self.program.name} and {self.example.name}:",
                f"  cd {shlex.quote(str(self.function.parent))}",
                f"  {build} && build/{shlex.quote(name)}",
                "or without CMake:",
                f"  {shlex.join(self.compile)} && ./{shlex.quote(name)}",
            )
        )


def program_text(name: str, inputs: Iterable[Argument], outputs: Iterable[Argument]) -> str:
    """The C++ program that runs a function."""
    inputs = list(inputs)
    text = (PROGRAM / "program.cpp").read_text()
    for field, value in (
        ("NAME", name),
        ("POSITIONAL", _texts(each.name for each in inputs if not each.keyword)),
        ("KEYWORDS", _texts(each.name for each in inputs if each.keyword)),
        ("RESULTS", _texts(each.name for each in outputs)),
    ):
        text = text.replace(f"@{field}@", value)
    return _marked(text, "//")


def cmake_text() -> str:
    """The CMakeLists.txt, the same for all functions."""
    return _marked((PROGRAM / "CMakeLists.txt").read_text(), "#")


def is_ours(path: Path) -> bool:
    """Whether a file is as it was written by `to_mlxfn`, or not there at all."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    body, mark, check = text.rpartition(_MARK)
    return bool(mark) and check == f"{_check(body)}\n"


def _marked(text: str, comment: str) -> str:
    body = f"{text}\n{comment}"
    return f"{body}{_MARK}{_check(body)}\n"


def _check(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _texts(texts: Iterable[str]) -> str:
    """As a list of C++ literals; JSON's escapes are valid there, too."""
    return ", ".join(json.dumps(text, ensure_ascii=False) for text in texts)
