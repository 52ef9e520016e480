"""What a rank keeps from one request of the notebook to the next; this runs on the rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.graph import Captured, Graph, capture_expression, profile
from mlxbench_kernel.graph.nonfinite import traced
from mlxbench_kernel.remote import results


class Kept:
    """The arrays that were captured last.

    Attributes
    ----------
    captured : Captured or None
        Still lazy.
    """

    def __init__(self) -> None:
        self.captured: Captured | None = None

    def capture(self, text: str, compiled: bool) -> Graph | str:
        """Capture an expression in this rank's namespace: its graph, or why there is none, in one
        line."""
        self.forget()
        found = _captured(text, compiled)
        if isinstance(found, str):
            return found
        self.captured = found
        return found.graph

    def profile(self, repeat: int, warm_up: int, collectives: bool) -> Any:
        """Profile what is kept: the fields of `mlxbench_kernel.graph.profile`'s answer that are of
        this rank alone, ``seconds``, ``whole`` and ``left_out``."""
        outputs, graph = self._there()
        found = profile(outputs, repeat, warm_up, collectives, graph)
        return found.seconds, found.whole, found.left_out

    def trace(self, collectives: bool) -> Any:
        """Look for NaN and Inf in what is kept."""
        outputs, graph = self._there()
        return traced(outputs, graph, collectives)

    def forget(self) -> None:
        """Keep nothing, nor a result that nobody took."""
        self.captured = None
        results.take(on_kept.__module__, on_kept.__name__)

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
