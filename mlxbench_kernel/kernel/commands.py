"""Reads the lines of ``%mlx_dist`` and ``%%mlx_dist``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel.arguments import Parser, name, nearest, seconds, split_words
from mlxbench_kernel.kernel.command import Command, Help, ranks_option
from mlxbench_kernel.kernel.ranks import RankSelection
from mlxbench_kernel.kernel.subcommands import SUBCOMMANDS


@dataclass(frozen=True)
class RunCell(Command):
    """Run a cell on ranks."""

    magic = "%%mlx_dist"
    summary = "Run the cell on the ranks."

    ranks: RankSelection | None
    timeout: float | None
    out: str | None
    setup: bool
    auto: bool

    @classmethod
    def options(cls, parser: Parser) -> None:
        ranks_option(parser)
        parser.option(
            "--timeout", "--timeout 60", type=seconds, metavar="S",
            help="give up waiting after S seconds; the ranks go on",
        )  # fmt: skip
        parser.option(
            "--out", "--out results", type=name, metavar="NAME",
            help="bind NAME here to a dictionary of the results by rank",
        )  # fmt: skip
        parser.option(
            "--setup", action="store_true",
            help="repeat the cell on ranks that start later (heal, restart --ranks)",
        )  # fmt: skip
        # Auto mode marks its cells with it; not for people.
        parser.add_argument("--auto", action="store_true", help=argparse.SUPPRESS)

    @classmethod
    def read(cls, parser: Parser, values: dict[str, Any], words: list[str]) -> Self:
        if words and words[0] in SUBCOMMANDS:
            line = SUBCOMMANDS[words[0]].magic
            raise UsageError(f"%%mlx_dist: {words[0]} runs no cell; type {line}, with one %")
        return super().read(parser, values, words)


def overview() -> str:
    """The short help: what can be typed, one line each."""
    rows = [("%%mlx_dist [--ranks 0,2-3] [--timeout S] [--out NAME] [--setup]", RunCell.summary)]
    rows += [
        (f"{command.magic} {command.example or command.words}".strip(), command.summary)
        for command in SUBCOMMANDS.values()
    ]
    rows.append(("%%local", "Run the cell here, in auto mode."))
    width = max(len(typed) for typed, _ in rows[1:])
    first, *others = rows
    lines = [f"{first[0]}", f"{'':{width}}  {first[1]}"]
    lines += [f"{typed:{width}}  {summary}" for typed, summary in others]
    return "\n".join([*lines, "%mlx_dist SUBCOMMAND --help lists the options."])


def read_line(line: str) -> Command:
    """What ``%mlx_dist LINE`` asks for.

    Raises
    ------
    UsageError
        The line is wrong; says where and what to type.
    """
    subcommand, *words = split_words(line) or ["help"]
    if subcommand in ("help", "-h", "--help"):
        if words and words[0] in SUBCOMMANDS:
            return SUBCOMMANDS[words[0]].of(["--help"])
        return Help(overview())
    if subcommand in SUBCOMMANDS:
        return SUBCOMMANDS[subcommand].of(words)
    near = nearest(subcommand, SUBCOMMANDS)
    wrong = Parser("%mlx_dist", "", "", near or "help").wrong
    if near:
        raise wrong(f"there is no subcommand {subcommand!r}, the nearest is {near}")
    raise wrong(f"there is no subcommand {subcommand!r}, only {', '.join(SUBCOMMANDS)}")


@lru_cache(maxsize=32)  # cell after cell has the same line
def read_cell(line: str) -> RunCell | Help:
    """What ``%%mlx_dist LINE`` asks for.

    Raises
    ------
    UsageError
        The line is wrong; says where and what to type.
    """
    return RunCell.of(split_words(line))
