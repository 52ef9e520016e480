"""What a rank does around a cell, for the group and for what is protected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from mlxbench_kernel.lines import name_cells
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.rank.stale import StaleNames


class Cells:
    """Follows the cells that a shell is sent.

    Parameters
    ----------
    shell
        The shell of the rank.

    Attributes
    ----------
    stale : StaleNames
        The names that cells may not use.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self.stale = StaleNames(shell.user_ns)
        self._settled = False
        self._named: dict[str, tuple[str, int]] = {}  # by what their code is compiled from
        name_cells(self._name_line)
        PROTECTION.namespace = shell.user_ns
        PROTECTION.settle = self._settle_within
        shell.ast_transformers.append(self.stale)

    def begin(self, code: str, about: Mapping[str, Any]) -> None:
        """A cell begins.

        Parameters
        ----------
        code
            Its source.
        about
            What was sent along: ``name`` (as ``Cell In[3]``), ``shift`` (of its line numbers)
            and ``ranks`` (where it runs, empty for everywhere).
        """
        if not self._shell.user_ns.get("size", 1) > 1:
            return
        filename = self._shell.compile.get_code_name(code, code, self._shell.execution_count)
        if "name" in about:
            self._named[filename] = (about["name"], about["shift"])
        GROUP.only(about.get("ranks", ()))
        self.settle()
        self._settled = False

    def settle(self) -> None:
        """Take note that what cells have evaluated so far is complete.

        Before the next cell at the latest; while a rank is idle nobody waits for it.
        """
        if not self._settled and GROUP.intact and self._shell.user_ns.get("size", 1) > 1:
            self.stale.settle(self._shell.user_ns_hidden)
            self._settled = True

    def _settle_within(self) -> None:
        """In the middle of a long cell, between two evaluations."""
        if GROUP.intact and self._shell.user_ns.get("size", 1) > 1:
            self.stale.settle(self._shell.user_ns_hidden)

    def end(self, good: bool) -> dict[str, Any] | None:
        """A cell has ended; how far the group has come, see `Collectives.progress`.

        With ``protected``: the completed evaluations of which values are kept.
        """
        if good:
            PROTECTION.commit()
        GROUP.only(())
        GROUP.rest()
        progress = GROUP.progress()
        return None if progress is None else {**progress, "protected": PROTECTION.counts()}

    def _name_line(self, file: str, number: int) -> str:
        """A line as the notebook calls it, whose cell may begin above what ranks got of it."""
        if file not in self._named:
            return ""
        name, shift = self._named[file]
        return f"{name}, line {number + shift}"

    def recover(self, count: int | None) -> dict[str, Any]:
        """After collectives were broken off: put back what can be, find what cannot.

        Parameters
        ----------
        count
            The completed evaluation to go back to; None when there is none.

        Returns
        -------
        dict
            ``restored`` and ``incomplete`` (lists of names) and ``step`` (of a protected number
            of that name, else None).
        """
        restored = [] if count is None else PROTECTION.put_back(count)
        found = self.stale.find(self._shell.user_ns_hidden)
        return {"restored": restored, "incomplete": found, "step": PROTECTION.step()}
