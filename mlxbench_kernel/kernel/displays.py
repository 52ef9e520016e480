"""What stands under a cell whose last line is a graph, or what was traced: a view, a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Bundle = tuple[dict[str, Any], dict[str, Any]] | None


def _drawn(view_of: str) -> Callable[[Any], Bundle]:
    def bundle(shown: Any) -> Bundle:
        from mlxbench_kernel.widgets import graphs

        view = getattr(graphs, view_of)(shown)
        made: Bundle = view._repr_mimebundle_()
        return made

    return bundle


def _table(traces: Any) -> Bundle:
    from mlxbench_kernel.widgets.table import Table

    table = Table(traces.header, traces.rows, traces.caption)
    return {"text/plain": repr(traces), "text/html": table._repr_html_()}, {}


# By name, so that nothing of it is loaded before somebody has a graph.
_SHOWN = {
    ("mlxbench_kernel.graph.model", "Graph"): _drawn("view_of_graph"),
    ("mlxbench_kernel.graph.diff", "GraphDiff"): _drawn("view_of_diff"),
    ("mlxbench_kernel.graph.profile", "Profile"): _drawn("view_of_profile"),
    ("mlxbench_kernel.graph.traces", "Traces"): _table,
}


def install(shell: InteractiveShell) -> None:
    """Show graphs as views in a shell."""
    for (module, name), bundle in _SHOWN.items():
        _formatter(shell).for_type_by_name(module, name, bundle)


def remove(shell: InteractiveShell) -> None:
    """Show them as text again."""
    for module, name in _SHOWN:
        _formatter(shell).pop(f"{module}.{name}", None)


def _formatter(shell: InteractiveShell) -> Any:
    assert shell.display_formatter is not None  # IPython makes it before extensions are loaded
    return shell.display_formatter.mimebundle_formatter
