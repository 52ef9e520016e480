"""Runs a cell of the notebook on ranks, with its output shown and its errors raised."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxbench_kernel.errors import CellTimeout
from mlxbench_kernel.kernel.output import CellOutput, choose_presenter
from mlxbench_kernel.kernel.shown import ShownCell

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from mlxbench_kernel.cluster import Cluster


def run_cell(
    shell: InteractiveShell,
    cluster: Cluster,
    code: str,
    ranks: Sequence[int],
    timeout: float | None,
    setup: bool = False,
) -> None:
    """Run the code on ranks and show what they put out until they are done.

    Parameters
    ----------
    shell
        The notebook's shell, whose current cell it is.
    cluster
        Where the ranks are.
    code
        What the ranks run.
    ranks
        Which ones.
    timeout
        Seconds to wait; None for as long as it takes.
    setup
        Whether it is repeated on ranks that start later.

    Raises
    ------
    CellError
        Ranks raised; one exception stands for all of them.
    CellTimeout
        Waiting was given up, and no rank has raised.
    """
    history = shell.history_manager
    typed = history.input_hist_raw[-1] if history is not None else ""
    count = shell.execution_count - 1  # it counts up as a cell begins
    first = first_line(code, typed)
    output = CellOutput(ranks, cluster.size, execution_count=count, first_line=first)
    said: list[str] = []
    shown = ShownCell(output, choose_presenter(shell, output))
    try:
        cluster.execute(
            code, ranks=ranks, timeout=timeout, output=shown, name=f"Cell In[{count}]",
            shift=first - 1, setup=setup, tell=said.append,
        )  # fmt: skip
    except (CellTimeout, KeyboardInterrupt) as given_up:
        failure = output.failure()
        if failure is None:
            raise
        # What some ranks raised is why the others wait: it matters more.
        print(str(given_up) or "interrupted", file=sys.stderr)
        raise failure from None
    finally:
        if said:
            print("\n".join(said), file=sys.stderr)
    failure = output.failure()
    if failure is not None:
        raise failure


def first_line(code: str, typed: str) -> int:
    """Number of the line of the cell as typed where the code that ranks run begins.

    Blank lines and comments before ``%%mlx_dist`` count, although the ranks never see them.
    """
    words, all_words = code.split(), typed.split()
    if all_words[len(all_words) - len(words) :] != words:
        return 1  # was not typed: other code has run the magic
    return len(typed.splitlines()) - len(code.splitlines()) + 1
