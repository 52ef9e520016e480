"""Completion: subcommands and options of the magics, and the names that live on the ranks.

A matcher of IPython's Matcher API v2 (``IPython/core/completer.py``, IPython 9.18). ipykernel
hands it the whole cell, terminal IPython too; a front-end that asks for a single line gets the
magics' words, and in auto mode the ranks' names.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

from mlxbench_kernel.errors import BenchError
from mlxbench_kernel.kernel import subcommands
from mlxbench_kernel.kernel.command import Command
from mlxbench_kernel.kernel.commands import RunCell
from mlxbench_kernel.kernel.generate_magics import offered
from mlxbench_kernel.kernel.graph_magics import ShowGraph
from mlxbench_kernel.kernel.memory_magics import PLANNED
from mlxbench_kernel.kernel.memory_magics import WORDS as MEMORY_WORDS
from mlxbench_kernel.kernel.step_magics import WORDS as STEP_WORDS
from mlxbench_kernel.kernel.step_magics import StepMagics
from mlxbench_kernel.kernel.subcommands import SUBCOMMANDS
from mlxbench_kernel.memory.limits import NAMES as LIMITS

if TYPE_CHECKING:
    from mlxbench_kernel.kernel.magics import RanksMagics

_LINE = re.compile(r"\s*(%{0,2})mlx_dist\s(.*)", re.DOTALL)
_GRAPH = re.compile(r"\s*%mlx_graph\s(.*)")
_STEP = re.compile(r"\s*%mlx_step\s(.*)")
_MEMORY = re.compile(r"\s*%mlx_mem\s(.*)")
_GENERATE = re.compile(r"\s*%%?mlx_generate\s(.*)")
_NAME = re.compile(r"[\w.]*\Z")
_RANKS_CELL = re.compile(r"%%mlx_dist\b")


class RanksMatcher:
    """Completes lines of ``%mlx_dist``, and code that will run on the ranks.

    Parameters
    ----------
    magics
        The magics of the shell, which hold the cluster.
    """

    def __init__(self, magics: RanksMagics) -> None:
        self._magics = magics

    @context_matcher(identifier="mlxbench_kernel", priority=1000)  # type: ignore[untyped-decorator]
    def match(self, context: CompletionContext) -> SimpleMatcherResult:
        """IPython's entry; other matchers are silenced where this one knows the answer."""
        line = _LINE.fullmatch(context.text_until_cursor)
        if line is not None and (line[1] or context.cursor_line == 0):
            # What follows the last blank, or the = of --option=value.
            word = re.split(r"[\s=]", line[2])[-1]
            found = self._words(line[1] == "%%", line[2][: len(line[2]) - len(word)], word)
            return _result(word, sorted(each for each in found if each.startswith(word)))
        graph = _GRAPH.fullmatch(context.text_until_cursor)
        if graph is not None:
            return self._graph(graph[1])
        step = _STEP.fullmatch(context.text_until_cursor)
        if step is not None:
            return self._step(step[1])
        memory = _MEMORY.fullmatch(context.text_until_cursor)
        if memory is not None:
            return self._memory(memory[1])
        generate = _GENERATE.fullmatch(context.text_until_cursor)
        if generate is not None:
            return self._generate(generate[1])
        return self._names_on_ranks(context)

    def _generate(self, text: str) -> SimpleMatcherResult:
        """A language model or an option of ``%%mlx_generate``."""
        word = re.split(r"\s", text)[-1]
        words = text[: len(text) - len(word)].split()
        found = offered(self._magics.shell, words, word)
        return _result(word, [each for each in found if each.startswith(word)])

    def _graph(self, text: str) -> SimpleMatcherResult:
        """An option of ``%mlx_graph``, or a name in its expression."""
        word = re.split(r"[\s=]", text)[-1]
        before = text[: len(text) - len(word)].replace("=", " ").split()
        if before and before[-1] == "--ranks":
            found: Iterable[str] = [*self._values("--ranks", word), "all"]
        elif word.startswith("-"):
            found = ShowGraph.parser().flags
        else:
            word = _NAME.search(text)[0]  # type: ignore[index]  # it matches everything
            completer = self._magics.shell.Completer
            find = completer.attr_matches if "." in word else completer.global_matches
            found = find(word)
        return _result(word, sorted({each for each in found if each.startswith(word)}))

    def _step(self, text: str) -> SimpleMatcherResult:
        """A word of ``%mlx_step``, or what can follow it: branches, settings, layers, measures."""
        word = re.split(r"[\s(]", text)[-1]
        words = text[: len(text) - len(word)].split()
        if not words:
            found: Iterable[str] = [name for name in STEP_WORDS if name not in ("", "N")]
        else:
            found = self._magics.shell.magics_manager.registry[StepMagics.__name__].names(words[0])
        return _result(word, sorted(each for each in found if each.startswith(word)))

    def _memory(self, text: str) -> SimpleMatcherResult:
        """A word of ``%mlx_mem``, the name of a limit, or ranks."""
        word = re.split(r"\s", text)[-1]
        words = text[: len(text) - len(word)].split()
        if words and words[-1] == "--ranks":
            found: Iterable[str] = self._values("--ranks", word)
        elif word.startswith("-"):
            found = ["--ranks", "--help"]
        elif not words:
            found = [name for name in MEMORY_WORDS if name]
        else:
            after = {"limit": LIMITS, "fit": PLANNED}.get(words[0], ())
            found = [f"{name}=" for name in after]
        return _result(word, sorted(each for each in found if each.startswith(word)))

    def _words(self, cell: bool, before: str, word: str) -> Iterable[str]:
        """What can stand at `word`, after `before`."""
        words = before.replace("=", " ").split()
        if cell:
            command: type[Command] | None = RunCell
        elif not words:
            return [*SUBCOMMANDS, "help"]
        else:
            command = SUBCOMMANDS.get(words[0])
        if command is None:
            return []
        parser = command.parser()
        if words and parser.takes_value(words[-1]):
            return self._values(words[-1], word)
        if word.startswith("-"):
            return parser.flags
        if command is subcommands.Push:
            return [each for each in self._magics.shell.user_ns if not each.startswith("_")]
        if command is subcommands.Pull:
            return self._variables_on_ranks(word)
        if command is subcommands.Auto:
            return ["on", "off"]
        if command is subcommands.Attach:
            from mlxbench_kernel.cluster import Cluster

            return [each.id for each in Cluster.running()]
        return parser.flags

    def _values(self, flag: str, word: str) -> Iterable[str]:
        """Values of an option."""
        if flag == "--backend":
            from mlxbench_kernel.cluster.hostfile import BACKENDS

            return [*BACKENDS, "any"]
        if flag == "--hostfile":
            return _hostfiles(word)
        if flag == "--ranks" and self._magics.cluster is not None:
            return [str(rank) for rank in range(self._magics.cluster.size)]
        return []  # IPython's own matchers know files

    def _names_on_ranks(self, context: CompletionContext) -> SimpleMatcherResult:
        lines = context.full_text.splitlines(keepends=True)
        if context.cursor_line > 0 and _RANKS_CELL.match(lines[0]):
            first = 1
        elif self._magics.auto.sends(lines):
            first = 0
        else:
            return _result("", [])
        code = "".join(lines[first:])
        cursor = sum(map(len, lines[first : context.cursor_line])) + context.cursor_position
        start, matches = self._ask_ranks(code, cursor)
        return _result(code[start:cursor], matches)

    def _variables_on_ranks(self, word: str) -> list[str]:
        _, matches = self._ask_ranks(word, len(word))
        known = {*dir(builtins), *keyword.kwlist}
        return [each for each in matches if each.isidentifier() and each not in known]

    def _ask_ranks(self, code: str, cursor: int) -> tuple[int, list[str]]:
        if self._magics.cluster is None:
            return cursor, []
        try:
            return self._magics.cluster.complete(code, cursor)
        except BenchError:
            return cursor, []  # a message here would land in the middle of the user's typing


def _hostfiles(word: str) -> list[str]:
    """JSON files and folders whose path begins with `word`."""
    folder = word.rpartition("/")[0] + "/" if "/" in word else ""
    try:
        entries = sorted(Path(folder or ".").expanduser().iterdir())
    except OSError:
        return []
    folders = [f"{folder}{each.name}/" for each in entries if each.is_dir()]
    return [f"{folder}{each.name}" for each in entries if each.suffix == ".json"] + folders


def _result(fragment: str, matches: Iterable[str]) -> SimpleMatcherResult:
    return {
        "completions": [SimpleCompletion(text=each, type="") for each in matches],
        "matched_fragment": fragment,
        "suppress": True,
        "ordered": True,
    }
