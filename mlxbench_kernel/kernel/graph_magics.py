"""``%mlx_graph``: the lazy graph of an expression, here or on ranks."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel.arguments import HelpWanted, Parser, split_words
from mlxbench_kernel.kernel.command import Command, Help
from mlxbench_kernel.kernel.frames import only_frames_of_the_user
from mlxbench_kernel.kernel.ranks import RankSelection
from mlxbench_kernel.kernel.retraces import Retraces

if TYPE_CHECKING:
    from mlxbench_kernel.kernel.magics import RanksMagics

MANY_NODES = 100_000  # from which on opening a graph takes about a second
_OPTION = re.compile(r"(?:^|\s)(--[a-z]|-h\b)")


@dataclass(frozen=True)
class ShowGraph(Command):
    """Show the graph of an expression."""

    magic = "%mlx_graph"
    summary = "Show the lazy graph of arrays, or of a call, before it is evaluated."
    detail = (
        "Nothing is evaluated: of a call, as step(x, y), the function runs with mx.eval switched "
        "off, and what it changes in modules, optimizers, arrays and the random state is put back. "
        "What else it does (prints, files, counters) is done."
    )
    words = "EXPR"
    example = "step(x, y)"

    expression: str
    ranks: str | None
    profile: bool
    nonfinite: bool
    traces: bool
    uncompiled: bool

    @classmethod
    def options(cls, parser: Parser) -> None:
        parser.option(
            "--ranks", "step(x, y) --ranks all", metavar="R",
            help="on these ranks, as 0,2-3 or all; here without",
        )  # fmt: skip
        parser.option(
            "--profile", action="store_true",
            help="evaluate a copy node by node, and show the time of each operation",
        )  # fmt: skip
        parser.option(
            "--nonfinite", action="store_true",
            help="evaluate a copy, and find the first operation that gives NaN or Inf",
        )  # fmt: skip
        parser.option(
            "--traces", action="store_true",
            help="what a function of mx.compile was traced for, by which lines; nothing is called",
        )  # fmt: skip
        parser.option(
            "--uncompiled", action="store_true",
            help="look into functions of mx.compile as if they were not compiled",
        )  # fmt: skip

    def selection(self) -> RankSelection | None:
        """The ranks that were asked for; None for all of them.

        Raises
        ------
        UsageError
            They are not written as ranks are.
        """
        if self.ranks is None or self.ranks == "all":
            return None
        try:
            return RankSelection.parse(self.ranks)
        except ValueError as error:
            raise UsageError(
                f"{self.magic}: --ranks {error}, or all; type {self.magic} loss --ranks 0"
            ) from None


def read_graph_line(line: str) -> ShowGraph | Help:
    """What ``%mlx_graph LINE`` asks for: an expression, with options after it.

    Raises
    ------
    UsageError
        The line is wrong; says where and what to type.
    """
    expression, options = _split(line)
    parser = ShowGraph.parser()
    try:
        values, rest = parser.read(split_words(options))
    except HelpWanted as help_wanted:
        return Help(str(help_wanted))
    if rest and not expression:
        raise parser.wrong("the expression stands before the options")
    if rest:
        raise parser.wrong(f"nothing is meant by {rest[0]!r}")
    if not expression:
        raise parser.wrong("an expression is missing")
    command = ShowGraph(expression=expression, **values)
    command.selection()
    return command


def _split(line: str) -> tuple[str, str]:
    """The expression and the options, which follow it; ``a --b`` alone is an expression."""
    for match in _OPTION.finditer(line):
        if not line[: match.start(1)].strip() or _is_expression(line[: match.start(1)]):
            return line[: match.start(1)].strip(), line[match.start(1) :]
    return line.strip(), ""


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        return False
    return True


@magics_class
class GraphMagics(Magics):
    """Holds ``%mlx_graph``.

    Parameters
    ----------
    ranks
        The magics that hold the cluster.
    """

    def __init__(self, ranks: RanksMagics) -> None:
        super().__init__(ranks.shell)
        self._ranks = ranks
        self.retraces = Retraces(ranks.shell)

    @line_magic
    def mlx_graph(self, line: str) -> None:
        """The lazy graph of arrays, or of a call, before it is evaluated.

        ::

            %mlx_graph loss                   what a lazy array is computed from
            %mlx_graph step(x, y)             what a call would compute; it is not evaluated
            %mlx_graph step(x, y) --ranks 1   on a rank, with its variables
            %mlx_graph step(x, y) --ranks all do the ranks compute the same?
            %mlx_graph step(x, y) --profile   and how long does each operation take?
            %mlx_graph loss --nonfinite       where do NaN and Inf come from?
            %mlx_graph step --traces          when was a compiled function traced again, and why?
        """
        command = read_graph_line(line)
        if isinstance(command, Help):
            print(command.text)
        else:
            self._show(command)

    def _show(self, command: ShowGraph) -> None:
        if command.traces:
            return self._show_traces(command)
        if command.ranks is not None:
            return self._show_ranks(command)
        from mlxbench_kernel.graph import capture_expression, first_nonfinite, profile
        from mlxbench_kernel.widgets import ProgressBar, graphs

        shell = self._ranks.shell
        with only_frames_of_the_user(shell):
            captured = capture_expression(
                command.expression, shell.ev, shell.user_ns, not command.uncompiled
            )
        focus = measured = None
        with ProgressBar() as progress:
            if command.nonfinite:
                found = first_nonfinite(captured.outputs, captured.graph, progress=progress)
                print(found or "everything is finite")
                focus = None if found is None else found.node
            if command.profile:
                measured = profile(captured.outputs, graph=captured.graph, progress=progress)
                print(measured)
            if captured.graph.nodes >= MANY_NODES:
                progress(0.9, f"opening {captured.graph.nodes:,} nodes")
            if measured is None:
                view = graphs.view_of_graph(captured.graph, focus)
            else:
                view = graphs.view_of_profile(measured, focus)
        display(view)
        return None

    def _show_traces(self, command: ShowGraph) -> None:
        from mlxbench_kernel.widgets.table import Table

        if command.ranks is not None:
            raise UsageError(
                "%mlx_graph: --traces is of this notebook; on ranks call watch_retracing() and "
                "traces(step) of mlxbench_kernel in a cell"
            )
        with only_frames_of_the_user(self._ranks.shell):
            function = self._ranks.shell.ev(command.expression)
        found = self.retraces.of(function)
        display(Table(found.header, found.rows, found.caption))

    def _show_ranks(self, command: ShowGraph) -> None:
        from mlxbench_kernel.graph import agreement
        from mlxbench_kernel.graph.profile import side_by_side
        from mlxbench_kernel.remote.replays import replays_on
        from mlxbench_kernel.widgets import ProgressBar, graphs

        cluster = self._ranks.cluster
        if cluster is None:
            raise UsageError("no ranks are running: type %mlx_dist up -n 2")
        chosen = command.selection()
        ranks = list(range(cluster.size)) if chosen is None else chosen.among(cluster.size)
        what, compiled = command.expression, not command.uncompiled
        focus, said = None, list[str]()
        shown = ranks[0]
        with ProgressBar() as progress:
            progress(0.1, f"capturing on {len(ranks)} ranks" if len(ranks) > 1 else "capturing")
            with replays_on(cluster, what, ranks, compiled, said.append) as replays:
                captured = replays.graphs
                if command.nonfinite:
                    progress(0.4, "looking for NaN and Inf")
                    found = replays.nonfinite()
                    said.append(str(found))
                    shown, origin = next(iter(found.origins.items()), (shown, None))
                    focus = None if origin is None else origin.node
                if command.profile:
                    progress(0.6, "measuring each operation")
                    measured = replays.profile()
                    alone = len(ranks) == 1
                    said.append(str(measured[shown]) if alone else side_by_side(measured))
            if captured[shown].nodes >= MANY_NODES:
                progress(0.9, f"opening {captured[shown].nodes:,} nodes")
            agrees, merged = agreement(captured)
            if command.profile:
                view = graphs.view_of_profile(measured[shown], focus, f"rank {shown}")
            elif merged is not None and focus is None:
                view = graphs.view_of_states(*merged, note=agrees)
            else:
                view = graphs.view_of_graph(captured[shown], focus, f"rank {shown}")
        print("\n".join([*([agrees] if agrees else []), *said]))
        display(view)
