"""Has a view answer while a cell of the notebook's kernel runs.

JupyterLab sends what is done in widgets to a subshell, a thread beside the one of the cells. But
ipykernel (7.4, ``ipykernel.comm.comm.BaseComm``) hands it on to the thread that wrote to the widget
last, so that it waits for the cell after all. That is right for one who waits for an answer there;
our views only note what is wanted, and do it on threads of their own.
"""

from __future__ import annotations

from typing import Any

from mlxbench_kernel.widgets.controls import parts_of

ROUTE = "_reply_subshell_for"


def answer_beside_cells(view: Any) -> None:
    """Have messages to a widget, and to all inside of it, be handled where the browser sent them.

    Parameters
    ----------
    view
        An ``ipywidgets.Widget``. What is put into it later is as it was.
    """
    for widget in parts_of(view):
        comm = getattr(widget, "comm", None)
        if hasattr(comm, ROUTE):
            setattr(comm, ROUTE, lambda _data, asked: asked)
