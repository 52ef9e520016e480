"""What ``mx.compile`` traces in the notebook's own kernel, with the lines of its cells."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from mlxbench_kernel import native
from mlxbench_kernel.lines import name_cells

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell

    from mlxbench_kernel.graph import Trace, Traces, Watch

MANY = 3  # times that a function is traced again in one cell, before a line says so
_MLX = re.compile(r"^\s*(?:import|from)\s+mlx\b", re.MULTILINE)


class Retraces:
    """Watches ``mx.compile`` from the first cell that imports MLX.

    After a cell in which something was traced again and again, a line says what and why.

    Parameters
    ----------
    shell
        The notebook's.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self._watch: Watch | None = None
        self._again: list[Trace] = []
        name_cells(self._name_line)

    def install(self) -> None:
        """Begin, where MLX is imported or will be."""
        self.shell.events.register("pre_run_cell", self._before)
        self.shell.events.register("post_run_cell", self._after)

    def remove(self) -> None:
        """Watch no more; what was noted is forgotten."""
        self.shell.events.unregister("pre_run_cell", self._before)
        self.shell.events.unregister("post_run_cell", self._after)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def of(self, compiled: Any) -> Traces:
        """What a compiled function was traced for.

        Raises
        ------
        UsageError
            It was compiled before the watch began, or is not compiled.
        """
        from mlxbench_kernel.graph import traces

        self._start()
        self._again.clear()  # whoever asks need not be told
        return traces(compiled)

    def _start(self) -> None:
        from mlxbench_kernel.graph import watch_retracing

        if self._watch is None:
            self._watch = watch_retracing(self._note)

    def _before(self, info: ExecutionInfo) -> None:
        self._again.clear()
        if self._watch is not None or not native.ready():  # no cell waits for it to be compiled
            return
        if "mlx.core" in sys.modules or _MLX.search(info.raw_cell or ""):
            with contextlib.suppress(ImportError):  # which the cell will raise
                self._start()

    def _note(self, trace: Trace) -> None:
        if trace.changes:
            self._again.append(trace)

    def _after(self, _: object) -> None:
        for name, times in Counter(trace.function for trace in self._again).items():
            if times >= MANY:
                last = [trace for trace in self._again if trace.function == name][-1]
                print(
                    f"{name} was traced again {times} times in this cell, last at {last.line}: "
                    f"{last.why} (%mlx_graph {name} --traces shows all)"
                )
        self._again.clear()

    def _name_line(self, file: str, number: int) -> str:
        found = self.shell.compile.format_code_name(file)
        return "" if found is None else f"{' '.join(found)}, line {number}"
