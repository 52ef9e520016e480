"""Shows the output of a cell in the front-end that runs it, while it comes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from mlxbench_kernel.kernel.output.append import Append
from mlxbench_kernel.kernel.output.blocks import EMPTY, Block, blocks
from mlxbench_kernel.kernel.output.model import CellOutput
from mlxbench_kernel.kernel.output.presenter import Presenter, Publish

RATE = 2_000_000  # characters per second that redraws send, at most
SHARE = 5  # times the duration of a redraw that pass until the next


class InPlace(Presenter):
    """Presenter for front-ends that update displays: JupyterLab, Notebook, VS Code, nbclient.

    The output is a row of displays, each with an id: blocks of text with ANSI colours, which
    all of them render in ``text/plain``, and rich bundles. What changes is updated in place.
    """

    def __init__(
        self,
        output: CellOutput,
        publish: Publish,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(output, publish, clock)
        self._name = uuid.uuid4().hex
        self._shown: list[str] = []
        self._seen: tuple[int, str | None] | None = None

    def finish(self) -> None:
        """Bring all displays to their final state."""
        self.status_line = None
        self._seen = (self.output.version, None)
        self._show(blocks(self.output, final=True), final=True)

    def _redraw(self, now: float) -> None:
        state = (self.output.version, self.status_line)
        if state == self._seen:
            return
        self._seen = state
        found = blocks(self.output, final=False, status=self.status_line)
        sent = self._show(found, final=False)
        self._due = max(self._due, now + sent / RATE, now + SHARE * (self._clock() - now))

    def _show(self, found: list[Block], final: bool) -> int:
        """Publish what differs from what is shown; return how many characters that were.

        A display cannot be taken away: those that are not needed show nothing, while the
        cell runs those before the last, so that the newest output stays at the bottom.
        """
        spare = [EMPTY] * (len(self._shown) - len(found))
        found = [*found, *spare] if final else [*found[:-1], *spare, *found[-1:]]
        sent = 0
        for position, block in enumerate(found):
            update = position < len(self._shown)
            if update and self._shown[position] == block.key:
                continue
            self._publish(block.data, block.metadata, f"{self._name}-{position}", update)
            sent += sum(len(str(value)) for value in block.data.values())
            self._shown[position : position + 1] = [block.key]
        return sent


def choose_presenter(shell: Any, output: CellOutput) -> Presenter:
    """The presenter for the front-end that sent the current cell.

    A kernel is not told what its front-end can do. Those that update displays send the id of
    the cell in the metadata of ``execute_request`` (JupyterLab 4.6 and Notebook 7.6:
    ``CodeCell.execute``; VS Code: ``CellExecution.executeCodeCell``) or allow no input
    (nbclient 0.11, hence nbconvert and papermill); ``jupyter console`` 6.6 does neither and
    ignores updates. All were read in November 2026.

    Parameters
    ----------
    shell
        The IPython shell, of a kernel or of a terminal.
    output
        What to show.
    """

    def publish(
        data: dict[str, Any], metadata: dict[str, Any], display_id: str | None, update: bool
    ) -> None:
        transient = {} if display_id is None else {"display_id": display_id}
        shell.display_pub.publish(data, metadata, transient=transient, update=update)

    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return Append.to_terminal(output, publish)
    request = kernel.get_parent("shell")
    has_cell = "cellId" in (request.get("metadata") or {})
    takes_input = (request.get("content") or {}).get("allow_stdin", False)
    if has_cell or not takes_input:
        return InPlace(output, publish)
    return Append(output, publish)
