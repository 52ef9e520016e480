"""Where a cell runs: auto mode sends cells to the ranks, ``%%local`` keeps one here.

One input transformer decides. It rewrites the text of a cell before IPython runs it, and runs
nothing itself: IPython may transform a cell more than once (ipykernel 7.4 does so for every
cell without ``await``), and still it runs once. ipyparallel's ``%autopx`` replaces ``run_cell``
instead, and runs the previous cell again when one awaits.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel.ranks import ranks_text

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_LOCAL = re.compile(r"%%local\s*(#.*)?$")
_BENCH_MAGIC = re.compile(r"%%local\b|%{1,2}mlx_\w+")
_LEAVING = re.compile(r"(exit|quit)\s*(\(\s*\))?\s*$")


def first_code_line(lines: list[str]) -> int | None:
    """Index of the first line that is neither blank nor a comment, None without one."""
    for index, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            return index
    return None


def stays_here(lines: list[str]) -> bool:
    """Whether a cell runs in the notebook's kernel although auto mode is on.

    So do cells that begin with ``%%local`` or a magic of mlxbench, ``exit`` and ``quit`` alone,
    and cells without code.
    """
    index = first_code_line(lines)
    if index is None:
        return True
    first = lines[index].lstrip()
    if _BENCH_MAGIC.match(first):
        return True
    return bool(_LEAVING.match(first)) and first_code_line(lines[index + 1 :]) is None


def check_cell(cell: str) -> None:
    """See that a cell for ranks holds no magic of this notebook.

    Raises
    ------
    UsageError
        It does; nothing of it has run.
    """
    for number, line in enumerate(cell.splitlines(), 1):
        if found := _BENCH_MAGIC.match(line.lstrip()):
            raise UsageError(
                f"{found[0]} in line {number} of the cell runs in this notebook and not on ranks: "
                "put it into a cell of its own; nothing has run"
            )


class AutoMode:
    """Input transformer of one shell, with the switch of auto mode.

    Parameters
    ----------
    shell
        Whose cells are meant.
    """

    # IPython's check for complete input then leaves the cell as it was typed.
    has_side_effects = True

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.on = False
        self._restore_prompt: Callable[[], None] | None = None
        self._cells = threading.local()  # subshells run cells in threads of their own

    def install(self) -> None:
        """Begin to watch the shell's cells."""
        # The cell that holds %load_ext has begun, and its end will be counted.
        self._cells.depth = int(getattr(self.shell.displayhook, "exec_result", None) is not None)
        self.shell.input_transformers_cleanup.append(self)
        self.shell.events.register("pre_execute", self._cell_begins)
        self.shell.events.register("post_execute", self._cell_ends)

    def remove(self) -> None:
        """Switch auto mode off and leave the shell as it was before `install`."""
        self.switch_off()
        self.shell.input_transformers_cleanup.remove(self)
        self.shell.events.unregister("pre_execute", self._cell_begins)
        self.shell.events.unregister("post_execute", self._cell_ends)

    def switch_on(self, size: int) -> None:
        """Send the following cells to the ranks, of which there are `size`."""
        self.on = True
        if self._restore_prompt is None and hasattr(self.shell, "prompts"):
            from mlxbench_kernel.kernel.prompts import show_in_prompt

            self._restore_prompt = show_in_prompt(self.shell, ranks_text(range(size)))

    def switch_off(self) -> None:
        """Run the following cells here again."""
        self.on = False
        if self._restore_prompt is not None:
            self._restore_prompt()
            self._restore_prompt = None

    def sends(self, lines: list[str]) -> bool:
        """Whether a cell of these lines would run on the ranks when entered now."""
        return self.on and not stays_here(lines)

    def __call__(self, lines: list[str]) -> list[str]:
        """Rewrite a cell, given as lines with their ends, as IPython's transformers do."""
        index = first_code_line(lines)
        if index is None:
            return lines
        if _LOCAL.match(lines[index].rstrip("\n")):
            return _without_local(lines, index)
        if lines[index].startswith("%%") and _BENCH_MAGIC.match(lines[index]):
            return lines[index:]  # IPython knows a cell magic only on the first line
        if not self.sends(lines) or self._inside_a_cell() or self._behind_the_scenes():
            return lines
        return ["%%mlx_dist --auto\n", *lines]

    def _cell_begins(self) -> None:
        self._cells.depth = getattr(self._cells, "depth", 0) + 1

    def _cell_ends(self) -> None:
        # A blank cell ends without having begun.
        self._cells.depth = max(getattr(self._cells, "depth", 0) - 1, 0)

    def _inside_a_cell(self) -> bool:
        """Whether a cell that runs here has asked: its ``%timeit``, say, is meant to stay."""
        return getattr(self._cells, "depth", 0) > 0

    def _behind_the_scenes(self) -> bool:
        """Whether the front-end runs this for itself, as a variable viewer does.

        Such requests are silent or leave no history (Jupyter messaging, ``execute_request``).
        """
        kernel = getattr(self.shell, "kernel", None)
        if kernel is None:
            return False
        content = kernel.get_parent().get("content", {})
        return bool(content.get("silent")) or not content.get("store_history", True)


def _without_local(lines: list[str], index: int) -> list[str]:
    """The cell with its ``%%local`` line as a comment, so that lines keep their numbers."""
    rest = lines[index + 1 :]
    for position, line in enumerate(rest):
        if line.strip():
            if line.startswith("%%"):  # another cell magic: it has to be on the first line
                return rest[position:]
            break
    return [*lines[:index], f"# {lines[index]}", *rest]
