"""What stands under a cell whose last line is a graph, or what was traced: a view, a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.display import display

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Bundle = tuple[dict[str, Any], dict[str, Any]] | None


def _drawn(view_of: str) -> Callable[[Any], None]:
    def draw(shown: Any) -> None:
        from mlxbench_kernel.widgets import graphs

        display(getattr(graphs, view_of)(shown))

    return draw


def _table(traces: Any) -> Bundle:
    from mlxbench_kernel.widgets.table import Table

    table = Table(traces.header, traces.rows, traces.caption)
    return {"text/plain": repr(traces), "text/html": table._repr_html_()}, {}


# By name, so that nothing of it is loaded before somebody has a graph.
_DRAWN = {
    ("mlxbench_kernel.graph.model", "Graph"): _drawn("view_of_graph"),
    ("mlxbench_kernel.graph.diff", "GraphDiff"): _drawn("view_of_diff"),
    ("mlxbench_kernel.graph.profile", "Profile"): _drawn("view_of_profile"),
}
_WRITTEN = {
    ("mlxbench_kernel.graph.traces", "Traces"): _table,
}


def install(shell: InteractiveShell) -> None:
    """Show graphs as views in a shell."""
    for formatter, shown in _formatters(shell):
        for (module, name), show in shown.items():
            formatter.for_type_by_name(module, name, show)


def remove(shell: InteractiveShell) -> None:
    """Show them as text again."""
    for formatter, shown in _formatters(shell):
        for module, name in shown:
            formatter.pop(f"{module}.{name}", None)


def _formatters(shell: InteractiveShell) -> list[tuple[Any, dict[tuple[str, str], Any]]]:
    """What shows things in a shell, and which of ours: a view is more than one output."""
    made = shell.display_formatter
    assert made is not None  # IPython makes it before extensions are loaded
    return [(made.ipython_display_formatter, _DRAWN), (made.mimebundle_formatter, _WRITTEN)]
