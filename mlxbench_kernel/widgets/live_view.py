"""What a view that draws itself again and again is made of, whatever it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as ui

from mlxbench_kernel.widgets.beside_cells import answer_beside_cells
from mlxbench_kernel.widgets.controls import close_inside, say
from mlxbench_kernel.widgets.stepping_page import error_line
from mlxbench_kernel.widgets.threads import Commands, Redraws, one_line

End = Callable[[], None]


class LiveView(ui.VBox):  # type: ignore[misc]
    """A view with threads of its own, one that redraws and one for each queue of commands.

    What is inside it is made between `__init__` and `_begin`; then it draws with `redraw`.

    Parameters
    ----------
    queues
        Of commands: those of one wait for each other.

    Attributes
    ----------
    error, busy
        What went wrong, and what is being done, for the view to show.
    """

    def __init__(self, queues: int = 1) -> None:
        super().__init__()
        self.add_class("mlxbench-step")
        self.error, self.busy = ui.HTML(), ui.HTML()
        self._queues = [Commands(self._changed) for _ in range(queues)]
        self._redraws: Redraws | None = None
        self._error = ""
        self._unwatch: End | None = None
        self._closed = False

    def _begin(
        self,
        inside: Sequence[Any],
        watch: Callable[[Callable[[], None]], End],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Show what is inside, and draw from now on.

        Parameters
        ----------
        inside
            Widgets.
        watch
            Has a function called after what is shown has changed, and gives one that ends that.
        ready
            As for `Redraws`.
        """
        self.children = inside
        answer_beside_cells(self)
        self._redraws = Redraws(self._draw, ready)
        self._unwatch = watch(self._changed)
        self._changed()

    def redraw(self) -> bool:
        """Draw what changed since the last call.

        Returns
        -------
        bool
            Whether something was left out, as it changes too fast to be read.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End its threads, and take it away from where it is shown."""
        if self._closed or self._redraws is None:
            return
        self._closed = True
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        for queue in self._queues:
            queue.close()
        self._redraws.close()
        close_inside(self)
        super().close()

    def _changed(self) -> None:
        if self._redraws is not None:
            self._redraws.ask()

    def _draw(self) -> bool:
        try:
            left, self._error = self.redraw(), ""
        except Exception as error:  # else it would stand still, and nobody knew why
            left, self._error = False, f"the view could not be drawn: {one_line(error)}"
        errors = [queue.error for queue in self._queues if queue.error]
        say(self.error, error_line(next(iter(errors), self._error)))
        return left
