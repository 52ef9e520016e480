"""Reading a magic's line: words, options and values, with errors that say what to type.

`argparse` does the work; here its errors become one `UsageError` of one line, and nothing is
printed and nothing exits.
"""

from __future__ import annotations

import argparse
import difflib
import keyword
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel.ranks import RankSelection


class HelpWanted(Exception):
    """``--help`` was among the words; the argument is the text to show."""


class _ShowHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise HelpWanted(parser.format_help().rstrip())


class Parser(argparse.ArgumentParser):
    """The options of one command.

    Parameters
    ----------
    command
        What the user types, as ``%mlx_dist up``.
    summary
        One sentence for the help.
    words
        What stands there beside options, as ``NAMES``; "" for nothing.
    example
        Words that would be right after `command`, for messages.
    """

    def __init__(self, command: str, summary: str, words: str, example: str) -> None:
        super().__init__(
            prog=command,
            usage=" ".join(["%(prog)s", *words.split(), "[options]"]),
            description=summary,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.command = command
        self.example = example
        self._examples: dict[str, str] = {}
        self.add_argument(
            "-h", "--help", action=_ShowHelp, nargs=0, dest=argparse.SUPPRESS,
            help="show this help",
        )  # fmt: skip

    def option(self, flag: str, example: str = "", **keywords: Any) -> None:
        """Add an option; `example` is right use of it, and `keywords` are argparse's."""
        self.add_argument(flag, **keywords)
        self._examples[flag] = example

    @property
    def flags(self) -> list[str]:
        """All options, as ``["-n", "--hostfile", …]``."""
        return [flag for flag in self._option_string_actions if flag not in ("-h", "--auto")]

    def takes_value(self, flag: str) -> bool:
        """Whether a value follows the option `flag`."""
        action = self._option_string_actions.get(flag)
        return action is not None and action.nargs != 0

    def read(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Values of the options by name, and the words that are not options.

        Raises
        ------
        UsageError
            An option is unknown, lacks its value, or has a wrong one.
        HelpWanted
            ``-h`` or ``--help`` is among the words.
        """
        try:
            values, rest = self.parse_known_args(words)
        except argparse.ArgumentError as error:
            flag = error.argument_name or ""
            problem = error.message
            if problem.startswith("expected"):
                problem = "needs a value"
            elif problem.startswith("ignored explicit argument"):
                problem = "takes no value"
            raise self.wrong(f"{flag} {problem}", self._examples.get(flag)) from None
        for word in rest:
            if word.startswith("-"):
                raise self._unknown(word)
        return vars(values), rest

    def wrong(self, problem: str, example: str | None = None) -> UsageError:
        """The error for `problem`, with what to type instead."""
        return UsageError(
            f"{self.command}: {problem}; type {self.command} {example or self.example}".rstrip()
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse where it would print and exit."""
        raise self.wrong(message)

    def _unknown(self, word: str) -> UsageError:
        flag = word.partition("=")[0]
        # without the dashes, which would make -q look like -n
        bare = {each.lstrip("-"): each for each in self.flags}
        near = bare.get(nearest(flag.lstrip("-"), bare), "")
        if near == "--help":
            return self.wrong(f"there is no option {flag}", near)
        if near:
            return self.wrong(f"there is no option {flag}, the nearest is {near}", self.right(near))
        return self.wrong(f"there is no option {flag}, only {', '.join(self.flags)}", "--help")

    def right(self, flag: str) -> str:
        """Right use of an option, as ``--backend ring``."""
        return self._examples.get(flag) or flag


def split_words(line: str) -> list[str]:
    """Split a line as a shell does: quotes hold words together, ``# …`` ends the line.

    Raises
    ------
    UsageError
        A quote is not closed.
    """
    for comment in re.finditer(r"(?:^|\s)#", line):
        try:
            return shlex.split(line[: comment.start()])
        except ValueError:
            continue  # this # stands inside quotes
    try:
        return shlex.split(line)
    except ValueError:
        raise UsageError(f"a quote is not closed in: {line.strip()}; type its other end") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of `known` that looks most like `word`, "" when none does."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), "")


def ranks(text: str) -> RankSelection:
    """Value of ``--ranks``."""
    try:
        return RankSelection.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(what: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """Reader of a whole number from `least` to `most`; `what` names it in the message."""

    def read(text: str) -> int:
        # int() would also take 1_000, and digits of other scripts
        if re.fullmatch(r"-?[0-9]{1,20}", text):
            value = int(text)
            if value >= least and (most is None or value <= most):
                return value
        limit = f"{least} or more" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"takes {what}, {limit}, not {text!r}")

    return read


def seconds(text: str) -> float:
    """Value of ``--timeout``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"takes seconds, more than 0, not {text!r}")
    return value


def variable(text: str) -> tuple[str, str]:
    """Value of ``--env``: name and value of an environment variable."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"takes NAME=VALUE, not {text!r}")
    return name, value


def name(text: str) -> str:
    """A Python name that a value can be bound to."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise argparse.ArgumentTypeError(f"takes a name of a variable, not {text!r}")
    return text


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """Reader of one word out of `known`."""

    def read(text: str) -> str:
        if text not in known:
            near = nearest(text, known)
            hint = f", the nearest is {near}" if near else ""
            raise argparse.ArgumentTypeError(f"takes {', '.join(known)}, not {text!r}{hint}")
        return text

    return read
