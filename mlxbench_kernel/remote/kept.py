"""What a rank keeps from one request of the notebook to the next; this runs on the rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.graph import Captured, Graph, capture_expression, profile
from mlxbench_kernel.graph.nonfinite import traced


class Kept:
    """The arrays that were captured last, and what was found out about them.

    Attributes
    ----------
    captured : Captured or None
        Still lazy.
    result
        Of what was done with them last.
    """

    def __init__(self) -> None:
        self.captured: Captured | None = None
        self.result: Any = None

    def capture(self, text: str, compiled: bool) -> None:
        """Capture an expression in this rank's namespace.

        The result is the graph, or why there is none, in one line.
        """
        self.forget()
        found = _captured(text, compiled)
        if isinstance(found, str):
            self.result = found
        else:
            self.captured, self.result = found, found.graph

    def profile(self, repeat: int, warm_up: int, collectives: bool) -> None:
        """Profile what is kept; see `mlxbench_kernel.graph.profile`."""
        outputs, graph = self._there()
        found = profile(outputs, repeat, warm_up, collectives, graph)
        self.result = found.seconds, found.whole, found.left_out

    def trace(self, collectives: bool) -> None:
        """Look for NaN and Inf in what is kept."""
        outputs, graph = self._there()
        self.result = traced(outputs, graph, collectives)

    def take(self) -> Any:
        """The result, which is not kept any more."""
        result, self.result = self.result, None
        return result

    def forget(self) -> None:
        """Keep nothing."""
        self.captured = self.result = None

    def _there(self) -> tuple[list[mx.array], Graph]:
        if self.captured is None:  # another notebook's request came between
            raise UsageError("what was captured is not there any more: type it again")
        return self.captured.outputs, self.captured.graph


KEPT = Kept()


def on_kept(name: str, *arguments: Any) -> Any:
    """Call a method of `KEPT`; for the notebook, which can send functions of modules."""
    method: Callable[..., Any] = getattr(KEPT, name)
    return method(*arguments)


def _captured(text: str, compiled: bool) -> Captured | str:
    from IPython import get_ipython

    shell: Any = get_ipython()
    try:
        return capture_expression(text, shell.ev, shell.user_ns, compiled)
    except BenchError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}{_where(error)}"


def _where(error: BaseException) -> str:
    """The innermost line of the user's in which an error was raised."""
    found = ""
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "ipykernel_" in code.co_filename or code.co_filename.startswith("<ipython"):
            found = f" (line {traceback.tb_lineno} in {code.co_name})"
        traceback = traceback.tb_next
    return found
