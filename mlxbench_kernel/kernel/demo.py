"""Run a notebook without a browser and say what ran: ``make demo``.

``python -m mlxbench_kernel.kernel.demo NOTEBOOK`` executes the notebook from top to bottom
in the kernel "MLX Bench". The notebook's file is only read. As in JupyterLab, a cell with the tag
``raises-exception`` may raise; here it has to, because the text around it says that it does.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.kernel.spec import NAME

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RAISES = "raises-exception"  # the tag of cells that may raise, in JupyterLab and nbclient
_LINES = 16  # of a cell's output, at most


class Demo:
    """One run of a notebook, told cell by cell on stdout.

    Parameters
    ----------
    path
        The notebook; its folder is where the kernel and the ranks run.
    timeout
        Seconds that one cell may take.

    Attributes
    ----------
    cells
        Code cells that ran so far.
    raised
        Those of them that raised, as their tag says.
    ranks
        The most ranks that the notebook had at once, over all its clusters.

    Raises
    ------
    UsageError
        There is no such notebook, or the file is not one.
    """

    def __init__(self, path: Path, timeout: float = 600.0) -> None:
        try:
            self.notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, nbformat.ValidationError):
            raise UsageError(f"{path} is not a notebook") from None
        self.total = sum(cell.cell_type == "code" for cell in self.notebook.cells)
        self.cells = 0
        self.raised = 0
        self._silent: list[int] = []
        self.ranks = 0
        self._began = 0.0
        self._client = NotebookClient(
            self.notebook,
            kernel_name=NAME,
            timeout=int(timeout),
            resources={"metadata": {"path": str(path.resolve().parent)}},
            # Otherwise the kernel warns that anyone on this machine can read along.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            on_cell_start=self._start,
            on_cell_executed=self._executed,
        )

    def run(self) -> None:
        """Execute all cells.

        Raises
        ------
        BenchError
            A cell raised or took too long, one that was to raise did not, or the kernel could
            not be had or died.
        """
        began = time.monotonic()
        try:
            self._client.execute()
        except CellExecutionError as error:
            raise BenchError(f"cell {self.cells} raised {error.ename}; see above") from None
        except CellTimeoutError:
            raise BenchError(
                f"cell {self.cells + 1} took more than {self._client.timeout} s; "
                "--timeout S allows more"
            ) from None
        except DeadKernelError:
            raise BenchError(f"the kernel died in cell {self.cells + 1}") from None
        except NoSuchKernel:
            raise BenchError(
                f"Jupyter does not know the kernel {NAME}: python -m mlxbench_kernel.kernel.spec"
            ) from None
        seconds = time.monotonic() - began
        if self._silent:
            numbers = ", ".join(map(str, self._silent))
            raise BenchError(f"cell {numbers} was to raise, by its tag {_RAISES}, and did not")
        raised = f"; {self.raised} raised, as they should" if self.raised else ""
        print(f"\n{self.cells} cells in {seconds:.1f} s, on {self.ranks} ranks: all ran{raised}")

    def _start(self, cell: Any, cell_index: int) -> None:
        self._began = time.monotonic()

    def _executed(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        if cell.cell_type != "code":
            return
        seconds = time.monotonic() - self._began
        self.cells += 1
        self.ranks = max(self.ranks, self._running())
        if _RAISES in cell.metadata.get("tags", ()):
            if execute_reply["content"]["status"] == "error":
                self.raised += 1
            else:
                self._silent.append(self.cells)
        print(f"[{self.cells}/{self.total}] {seconds:5.1f} s  {_title(cell.source)}")
        lines = list(_lines(cell.outputs))
        if len(lines) > _LINES:
            lines = [*lines[: _LINES // 2], "…", *lines[-_LINES // 2 :]]
        for line in lines:
            print(f"                {line}")
        sys.stdout.flush()

    def _running(self) -> int:
        """How many ranks the notebook's kernel holds now."""
        assert self._client.km is not None
        kernel = getattr(self._client.km.provisioner, "pid", None)
        return sum(each.size for each in Cluster.running() if each.owner == kernel)


def _title(source: str) -> str:
    """What a cell does, in a line: its first line, and the next one after a bare magic."""
    lines = [line for line in source.splitlines() if line.strip()] or [""]
    if lines[0].startswith("%%") and len(lines) > 1:
        return f"{lines[0]} | {lines[1]}"
    return lines[0]


def _lines(outputs: list[Any]) -> Iterator[str]:
    """The output of a cell as text; figures are named, and other widgets are left out."""
    widget = ""
    for output in outputs:
        if output.output_type == "stream":
            text = output.text
        elif output.output_type == "error":
            text = "\n".join(output.traceback)
        elif any("plotly" in kind for kind in output.data):
            text = "(figure)"
        elif "image/svg+xml" in output.data:  # follows the widget that it stands in for
            text = f"(view of {widget})"
        elif any("widget" in kind for kind in output.data):
            widget = output.data.get("text/plain", "")
            continue
        else:
            text = output.data.get("text/plain", "")
        yield from (line for line in _ANSI.sub("", text).splitlines() if line.strip())


def main(arguments: list[str] | None = None) -> int:
    """Run the notebook that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description="Run a notebook without a browser.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a cell may take")
    options = parser.parse_args(arguments)
    try:
        Demo(options.notebook, options.timeout).run()
    except BenchError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
