"""Shows the output of a cell where nothing can be changed once it is printed."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

from mlxbench_kernel.kernel.output import ansi
from mlxbench_kernel.kernel.output.blocks import Style, gray
from mlxbench_kernel.kernel.output.model import CellOutput
from mlxbench_kernel.kernel.output.nodes import Node, in_rank_order
from mlxbench_kernel.kernel.output.presenter import Presenter, Publish

PATIENCE = 0.3  # seconds for which a line waits for other ranks to say the same
COLUMNS = 80


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class Append(Presenter):
    """Presenter for terminals: prints a line once no rank is likely to join it any more.

    That is when all ranks have joined it, passed it or are done, or when it is 0.3 s old;
    ranks that join later are printed again under their own label. Of unfinished lines, as
    progress bars, the first is shown as last line and rewritten with ``\\r``.

    Parameters
    ----------
    output, publish, clock
        See `Presenter`.
    write
        Writes text.
    live
        Show unfinished lines and the status.
    colours
        Write escape sequences for colours.
    columns
        Width that the last line may take.
    """

    def __init__(
        self,
        output: CellOutput,
        publish: Publish,
        clock: Callable[[], float] = time.monotonic,
        *,
        write: Callable[[str], None] = _write,
        live: bool = True,
        colours: bool = True,
        columns: int = COLUMNS,
    ) -> None:
        super().__init__(output, publish, clock)
        self._write = write
        self._live = live
        self._colours = colours
        self._columns = columns - 1
        self._style = Style(output)
        self._line = ""
        self._left_out = 0

    @classmethod
    def to_terminal(cls, output: CellOutput, publish: Publish) -> Append:
        """For IPython in a terminal, or with its output in a file."""
        tty = sys.stdout.isatty()
        columns = shutil.get_terminal_size().columns
        return cls(output, publish, live=tty, colours=tty, columns=columns)

    def finish(self) -> None:
        """Print the rest, unfinished lines included."""
        self.status_line = None
        self._show(self._clock(), final=True)

    def _redraw(self, now: float) -> None:
        self._show(now, final=False)

    def _show(self, now: float, final: bool) -> None:
        output = self.output
        with output.lock:
            parts, unfinished = self._settled(now, final)
            status = [self.status_line] if self.status_line else []
            raised = [f"{self._style.label(sum(1 << r for r in e.ranks)).strip()} {e.summary}"
                      for e in output.errors]  # fmt: skip
        if parts:
            self._rewrite("")
        lines: list[str] = []
        for part in parts:
            if isinstance(part, str):
                lines.append(part + "\n")
                continue
            self._print("".join(lines))
            lines.clear()
            self._publish(part.data or {}, part.metadata or {}, None, False)
        self._print("".join(lines))
        self._rewrite("" if final or not self._live else self._last(unfinished, raised, status))

    def _settled(self, now: float, final: bool) -> tuple[list[str | Node], list[str]]:
        """What to print now: lines, and bundles; and the unfinished lines."""
        parts: list[str | Node] = []
        unfinished: list[str] = []
        merge = self.output.merge
        waiting = False
        for node in in_rank_order(merge.nodes.items):
            if node.key is None and not final:
                unfinished.append(self._style.render(node, node.mask))
                continue
            mask = node.mask & ~node.shown
            if not mask or (waiting and not node.shown):
                continue
            if not final and not self._is_settled(node, now):
                waiting = waiting or not node.shown
                continue
            if merge.boundary is not None and node.place > merge.boundary:
                parts += self._left_out_line()
            node.shown |= mask
            if node.text is not None:
                parts.append(self._style.render(node, mask))
            else:
                label = [self._style.label(mask).rstrip()] if self._style.labelled else []
                parts += [*label, node]
        if final:
            parts += self._left_out_line()
        return parts, unfinished

    def _is_settled(self, node: Node, now: float) -> bool:
        if self.output.passed(node):
            return True
        return not node.revised and now - node.touched > PATIENCE

    def _left_out_line(self) -> list[str]:
        count = self.output.merge.unseen - self._left_out
        if count == 0:
            return []
        self._left_out += count
        return [gray(f"… {count:_} lines left out …".replace("_", " "))]

    def _last(self, unfinished: list[str], raised: list[str], status: list[str]) -> str:
        """The last line: the first unfinished one, who raised what, the status."""
        if len(unfinished) > 1:
            unfinished = [unfinished[0] + gray(f" (+{len(unfinished) - 1})")]
        return " · ".join([*unfinished, *raised, *status])

    def _rewrite(self, line: str) -> None:
        """Put a line in the place of the last one."""
        if len(ansi.strip(line)) > self._columns:
            line = ansi.strip(line)[: self._columns - 1] + "…"
        if line == self._line:
            return
        gone = len(ansi.strip(self._line)) - len(ansi.strip(line))
        blanks = " " * max(gone, 0)
        end = "\r" if blanks and not line else ""
        self._print(("\r" if self._line else "") + line + blanks + end)
        self._line = line

    def _print(self, text: str) -> None:
        if text:
            self._write(text if self._colours else ansi.strip(text))
