"""What a magic was asked to do, as data: the base of all commands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from mlxbench_kernel.kernel.arguments import HelpWanted, Parser, ranks


@dataclass(frozen=True)
class Command:
    """What one magic was asked to do.

    Attributes
    ----------
    magic
        The line up to the command's options, as ``%mlx_dist up``.
    summary, detail
        A short sentence for the help, and what there is to add.
    words
        What stands there beside options, "" for nothing.
    example
        Right words after the magic.
    """

    magic: ClassVar[str]
    summary: ClassVar[str]
    detail: ClassVar[str] = ""
    words: ClassVar[str] = ""
    example: ClassVar[str] = ""

    @classmethod
    def options(cls, parser: Parser) -> None:
        """Add the command's options to `parser`."""

    @classmethod
    def read(cls, parser: Parser, values: dict[str, Any], words: list[str]) -> Self:
        """Make the command from the options' values and the other words."""
        if words:
            raise parser.wrong(f"nothing is meant by {words[0]!r}")
        return cls(**values)

    @classmethod
    @cache
    def parser(cls) -> Parser:
        """The reader of this command's line."""
        description = f"{cls.summary} {cls.detail}".rstrip()
        parser = Parser(cls.magic, description, cls.words, cls.example)
        cls.options(parser)
        return parser

    @classmethod
    def of(cls, words: list[str]) -> Self | Help:
        """Read the words after the magic."""
        parser = cls.parser()
        try:
            values, rest = parser.read(words)
        except HelpWanted as help_wanted:
            return Help(str(help_wanted))
        return cls.read(parser, values, rest)


@dataclass(frozen=True)
class Help(Command):
    """Show `text`."""

    text: str


def ranks_option(parser: Parser) -> None:
    """Add ``--ranks``."""
    parser.option(
        "--ranks", "--ranks 0,2-3", type=ranks, metavar="R", help="ranks such as 0,2-3; all without"
    )


def hostfile_options(parser: Parser) -> None:
    """Add ``--hostfile`` and ``--python``."""
    parser.option(
        "--hostfile", "--hostfile hosts.json", type=os.path.expanduser, metavar="F",
        help="hosts, in the format of mlx.launch",
    )  # fmt: skip
    parser.option(
        "--python", "--python /opt/env/bin/python", metavar="PATH",
        help="Python of the ranks; without, this one's",
    )  # fmt: skip
