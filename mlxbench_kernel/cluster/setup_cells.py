"""Cells that are repeated on ranks which start later: those marked --setup, and plain imports."""

from __future__ import annotations

import ast
import json
from contextlib import suppress
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from mlxbench_kernel.errors import StorageError
from mlxbench_kernel.rank.files import write_text


class SetupCells:
    """The cells of one cluster, in the order in which they ran.

    Parameters
    ----------
    home
        Folder of the cluster, where they are kept for another notebook.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "setup.json"
        try:
            self.cells: list[str] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self.cells = []

    def note(self, code: str, setup: bool) -> None:
        """A cell has run on all ranks without an error.

        Parameters
        ----------
        code
            Its source.
        setup
            Whether it was marked; else its imports count.
        """
        kept = [code] if setup else _imports(code)
        new = [each for each in kept if each not in self.cells]
        if new:
            self._keep([*self.cells, *new])

    def put(self, key: str, code: str = "") -> None:
        """Have a cell of ours repeated, after all others.

        Parameters
        ----------
        key
            What it is for: a cell that had the same is not repeated any more.
        code
            Its source, of which the first line says that it is ours; "" for none.
        """
        mark = f"\n# {key}\n"
        cells = [each for each in self.cells if mark not in each]
        if code:
            first, _, rest = code.partition("\n")
            cells.append(f"{first}{mark}{rest}")
        if cells != self.cells:
            self._keep(cells)

    def _keep(self, cells: list[str]) -> None:
        self.cells = cells
        with suppress(StorageError):  # on a full disk another notebook will not know of them
            self.save(self._path.parent)

    def save(self, home: Path) -> None:
        """Write them to a cluster's folder."""
        self._path = home / "setup.json"
        write_text(self._path, json.dumps(self.cells))


def _imports(code: str) -> list[str]:
    """The imports at the top level of a cell, one statement each."""
    if "import" not in code:
        return []
    try:
        tree = ast.parse(TransformerManager().transform_cell(code))
    except (SyntaxError, ValueError):
        return []
    return [
        ast.unparse(each) for each in tree.body if isinstance(each, (ast.Import, ast.ImportFrom))
    ]
