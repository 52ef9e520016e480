"""A trivial cell, from Enter to its end.

Ours: ``%%mlx_dist``. Reference: ``%%px --block`` of an ipyparallel cluster of the same
size. Both clusters are up in the same process, and the same IPython shell runs both magics.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

from IPython.core.interactiveshell import InteractiveShell
from measure import Comparison, Report, arguments, by_turns
from reference import ipyparallel_client

TARGET = 1.0
GIVE_UP_SECONDS = 30
CELLS = ("pass", "1 + 1")


def timed(shell: InteractiveShell, magic: str, line: str, cell: str) -> Callable[[], float]:
    """A run of `cell` through a magic of `shell`; what is displayed goes nowhere."""

    def run() -> float:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            begin = time.perf_counter()
            shell.run_cell_magic(magic, line, cell)
            return time.perf_counter() - begin

    return run


def main() -> None:
    """Measure each cell on each number of ranks."""
    parser = arguments(__doc__, pairs=100)
    parser.add_argument("-n", type=int, action="append", help="ranks; may be repeated (2 and 8)")
    options = parser.parse_args()
    report = Report(options.check)
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "mlxbench_kernel")
    for n in options.n or [2, 8]:
        with ipyparallel_client(n) as client:
            client[:].activate()
            with redirect_stdout(io.StringIO()):
                shell.run_line_magic("mlx_dist", f"up -n {n}")
            try:
                for cell in CELLS:
                    ours = timed(shell, "mlx_dist", f"--timeout {GIVE_UP_SECONDS}", cell)
                    theirs = timed(shell, "px", "--block", cell)
                    seconds, reference = by_turns(ours, theirs, pairs=options.pairs, warm_up=10)
                    report.add(
                        Comparison(
                            f"cell {cell!r} on {n} ranks",
                            "%%px --block",
                            seconds,
                            reference,
                            TARGET,
                        )
                    )
            finally:
                with redirect_stdout(io.StringIO()):
                    shell.run_line_magic("mlx_dist", "down")
    report.leave()


if __name__ == "__main__":
    main()
