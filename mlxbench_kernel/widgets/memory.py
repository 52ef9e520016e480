"""The view of the pools of all hosts and of what ranks hold in them."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as ui

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.in_shell import follow_cells
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.remote.memory_asked import OfThisProcess
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets import memory_report
from mlxbench_kernel.widgets.controls import button, field, row, say
from mlxbench_kernel.widgets.live_view import LiveView
from mlxbench_kernel.widgets.memory_holdings import HoldingsPanel
from mlxbench_kernel.widgets.memory_limits import LimitsPanel
from mlxbench_kernel.widgets.memory_live import MemoryLive
from mlxbench_kernel.widgets.stepping_page import Page, busy_line

if TYPE_CHECKING:
    from pandas import DataFrame


ENDED = "this view has ended, and shows what was known then: type %mlx_mem for one that goes on"


class MemoryView(LiveView):
    """Every pool as a stacked bar, every rank's memory over time, and what holds it; in a cell.

    It goes on while cells run and while collectives block, on threads of its own; `close` ends
    them.

    Parameters
    ----------
    of
        A cluster, what watches it already, or None for the notebook's own kernel.
    """

    def __init__(self, of: Cluster | Memory | None = None) -> None:
        if of is not None and not isinstance(of, (Cluster, Memory)):
            raise UsageError(f"MemoryView takes a cluster, or None for this kernel, not {of!r}")
        super().__init__(queues=3)
        self.memory = of if isinstance(of, Memory) else watched(of)
        self.live = MemoryLive(self.memory.feed, self.memory.markers, self._shown)
        # Limits wait for cells; looking does not, and marks and what a limit would do are quick.
        after_cells, looks, self._quick = self._queues
        self.growth = ui.HTML()
        self.name = field("name of a mark", self._mark, "10em")
        self._panels = (
            HoldingsPanel(self.memory, looks.do),
            LimitsPanel(self.memory, after_cells.do, self._quick.do),
        )
        self.panels = ui.Accordion(
            [panel.widget for panel in self._panels],
            titles=[panel.title for panel in self._panels],
            selected_index=None,
        )
        self._open: int | None = None  # the panel that was drawn last
        self.panels.observe(lambda _change: self._changed(), "selected_index")
        marks = row(
            self.name,
            button("Mark", self._mark, "bookmark", "Begin a span with this name in the timelines"),
            button(
                "End mark", lambda: self._quick.do("", lambda: self.memory.mark("")), "", "End it"
            ),
        )
        above = [Page(), self.error, self.busy, self.growth]
        self._begin([*above, self.live, marks, self.panels], self.memory.watch)

    def __repr__(self) -> str:
        held = [
            f"rank {each.rank} {format_bytes(each.last['active'])}"
            for each in self.memory.feed.ranks
            if each.last
        ]
        return "Memory: " + (", ".join(held) or "no rank has answered yet")

    def to_dataframe(self) -> DataFrame:
        """All samples; see `memory_report.to_dataframe`."""
        return memory_report.to_dataframe(self.memory)

    def to_csv(self, path: str) -> None:
        """Write all samples as CSV."""
        memory_report.to_csv(self.memory, Path(path).expanduser())

    def to_html(self, path: str) -> None:
        """Write a report that needs nothing else to be read."""
        memory_report.to_html(self.memory, Path(path).expanduser())

    def close(self) -> None:
        """End its threads, take it away from where it is shown, and watch no more if it was the
        last view of its cluster."""
        super().close()
        let_go(self.memory)

    def _shown(self, there: bool) -> None:
        """Watch while a browser shows it, or may soon: ranks have work with that."""
        if there and not self._closed:
            self._unwatch = self._unwatch or self.memory.watch(self._changed)
            self._changed()
        elif not there and self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _mark(self) -> None:
        name = self.name.value.strip() or "mark"
        self._quick.do("", lambda: self.memory.mark(name))
        self.name.value = ""

    def redraw(self) -> bool:
        """Draw what changed; nothing is left for later."""
        self.live.draw()
        before, self._open = self._open, self.panels.selected_index
        if self._open is not None:
            self._panels[self._open].show(opened=self._open != before)
        told = self.memory.said_of_growth()
        if self.memory.feed.closed:
            told.insert(0, ENDED)
        say(self.growth, "".join(f"<div>⚠ {escape(line)}</div>" for line in told))
        waiting = self.memory.waiting
        doing = [each.doing for each in self._queues if each.doing]
        if waiting and doing:
            doing[0] += f": it waits {waiting}"
        say(self.busy, "".join(map(busy_line, doing)))
        return False


def watched(cluster: Cluster | None) -> Memory:
    """What watches a cluster, or the notebook's own kernel: one for all views of it."""
    for gone in [key for key, each in _WATCHED.items() if each.feed.closed]:
        _WATCHED.pop(gone).close()
    key = "" if cluster is None else cluster.id
    found = _WATCHED.get(key)
    if found is None or found.feed.closed or found.cluster is not cluster:
        if found is not None:
            found.close()
        found = Memory(_of_this_process() if cluster is None else cluster)
        _WATCHED[key] = found
    return found


def let_go(memory: Memory) -> None:
    """End what `watched` has given for a cluster, where no view shows it any more."""
    if memory.feed.watched or memory.cluster is None:
        return
    for key in [key for key, each in _WATCHED.items() if each is memory]:
        _WATCHED.pop(key).close()


def _of_this_process() -> OfThisProcess:
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return OfThisProcess({}, {})
    made = OfThisProcess(shell.user_ns, shell.user_ns_hidden, shell)
    follow_cells(shell, made.answers.looks.after_cell)
    return made


_WATCHED: dict[str, Memory] = {}
