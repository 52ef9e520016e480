"""Runs one cell on ranks and waits for it, showing what comes and who is still busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.state import SILENT
from mlxbench_kernel.errors import CellTimeout, ClusterError

REDRAW_SECONDS = 0.1
STRAGGLER_SECONDS = 3.0
OUTPUT_SECONDS = 2.0
INTERRUPT_SECONDS = 1.0


class CellOutputSink(Protocol):
    """Where a cell's output goes; `mlxbench_kernel.kernel.output` has the real one."""

    def message(self, rank: int, kind: str, content: dict[str, Any]) -> None:
        """One iopub message of a rank (Jupyter messaging 5.4); on the client's IO thread."""

    def page(self, rank: int, data: dict[str, Any]) -> None:
        """A mime bundle that ``?`` would put into the pager."""

    def done(self, rank: int) -> None:
        """The cell has ended on a rank and all its output has come."""

    def refresh(self, status: str) -> None:
        """Show what has come; called a few times a second. `status` says who is late."""

    def finish(self) -> None:
        """Show everything that has come."""


@dataclass
class CellResult:
    """What became of a cell.

    Attributes
    ----------
    seconds
        From sending the cell to the last rank's end.
    errors
        For each rank that raised: ``ename``, ``evalue``, ``traceback`` (list of str).
    """

    seconds: float = 0.0
    errors: dict[int, dict[str, Any]] = field(default_factory=dict)


class CellRun:
    """One cell on its way.

    Parameters
    ----------
    client
        Client of the cluster.
    code
        Source of the cell.
    ranks
        Where it runs.
    output
        Where its output goes; None shows nothing.
    doing
        Gives what ranks are doing, by rank.
    """

    def __init__(
        self,
        client: BenchClient,
        code: str,
        ranks: Sequence[int],
        output: CellOutputSink | None,
        doing: Callable[[Sequence[int]], dict[int, str]],
    ) -> None:
        self._client = client
        self._output = output
        self._doing = doing
        self._started = time.monotonic()
        self.result = CellResult()
        self._ended: set[int] = set()
        self._over = False
        self._showing_late = False
        client.forget_cells()
        self._replies = client.start_cells(code, ranks, self._message)

    def _message(self, rank: int, message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "error":
            self.result.errors[rank] = content
        if self._output is not None:
            self._output.message(rank, kind, content)
            if self._over and not self._showing_late:
                self._showing_late = True
                self._client.later(REDRAW_SECONDS, self._show_late)

    def _show_late(self) -> None:
        """Show what came after the cell had ended: from a thread that it started, for one."""
        self._showing_late = False
        if self._output is not None:
            self._output.finish()

    @property
    def busy(self) -> list[int]:
        """Ranks whose cell has not ended."""
        return [rank for rank, reply in self._replies.items() if not reply.done()]

    def wait(self, timeout: float | None) -> CellResult:
        """Wait until all ranks are done.

        Parameters
        ----------
        timeout
            Seconds to wait; None for as long as it takes.

        Raises
        ------
        CellTimeout
            Time is up; nothing was aborted, the message says who is doing what.
        KeyboardInterrupt
            After the ranks were interrupted too.
        """
        try:
            self._wait(timeout)
        except KeyboardInterrupt:
            self._client.call("interrupt", self.busy, timeout=INTERRUPT_SECONDS)
            wait(self._replies.values(), timeout=INTERRUPT_SECONDS)
            self._finish()
            if self.busy:
                raise CellTimeout(
                    f"interrupted, but {self._who()}; the next cell waits for them "
                    "(%mlx_dist status, %mlx_dist restart)"
                ) from None
            raise
        self._finish()
        return self.result

    def _wait(self, timeout: float | None) -> None:
        status, asked = "", self._started
        while busy := self.busy:
            self._settle()
            now = time.monotonic()
            waited = now - self._started
            if timeout is not None and waited >= timeout:
                self._finish()
                raise CellTimeout(
                    f"no end after {timeout:g} s: {self._who()}. Nothing was aborted: "
                    "%mlx_dist interrupt stops them, %mlx_dist status looks again"
                )
            if waited > STRAGGLER_SECONDS and now - asked > 1.0:
                asked = now
                states = self._states()
                uneven = self._is_uneven(states)
                status = f"{waited:.0f} s · {_sentence(states)}" if uneven else ""
            if self._output is not None:
                self._output.refresh(status)
            left = REDRAW_SECONDS if timeout is None else min(REDRAW_SECONDS, timeout - waited)
            wait([self._replies[rank] for rank in busy], timeout=max(left, 0.0))

    def _is_uneven(self, states: dict[int, str]) -> bool:
        """Whether it says something to name the busy ranks: all alike is just a long cell."""
        silent = any(state.startswith(SILENT) for state in states.values())
        return silent or len(set(states.values())) > 1 or len(states) < len(self._replies)

    def _who(self) -> str:
        return _sentence(self._states())

    def _states(self) -> dict[int, str]:
        """What becomes of the ranks whose cell has not ended rightly."""
        gone = {
            rank: "gone"
            for rank, reply in self._replies.items()
            if reply.done() and not self._came_back(reply)
        }
        return gone | self._doing(self.busy)

    def _settle(self) -> None:
        """Tell the output which ranks have ended."""
        for rank, reply in self._replies.items():
            if rank in self._ended or not (reply.done() and reply.output.done()):
                continue
            self._ended.add(rank)
            if self._output is not None:
                for page in getattr(reply.result(), "_content", {}).get("payload", []):
                    if page.get("source") == "page":
                        self._output.page(rank, page["data"])
                self._output.done(rank)

    def _finish(self) -> None:
        done = [reply for reply in self._replies.values() if reply.done()]
        wait([reply.output for reply in done if self._came_back(reply)], timeout=OUTPUT_SECONDS)
        self.result.seconds = time.monotonic() - self._started
        for rank, reply in self._replies.items():
            if not reply.done():
                continue
            answer = reply.result()
            if not self._came_back(reply):
                self._message(rank, {"header": {"msg_type": "error"}, "content": _gone(rank)})
            elif isinstance(answer, BaseException) and rank not in self.result.errors:
                self._message(rank, {"header": {"msg_type": "error"}, "content": _unsaid(answer)})
        self._settle()
        if self._output is not None:
            self._output.finish()
        self._over = True

    @staticmethod
    def _came_back(reply: Any) -> bool:
        return type(reply.result()).__name__ != "RemoteError" or (
            reply.result().ename != "EngineError"
        )


def _sentence(states: dict[int, str]) -> str:
    return ", ".join(f"rank {rank} is {state}" for rank, state in states.items())


def _unsaid(answer: Any) -> dict[str, Any]:
    """The error of a cell whose reply alone says that it failed, or that it never ran."""
    if type(answer).__name__ == "TaskAborted":
        text = "the cell did not run: the one before it failed on this rank meanwhile; run it again"
        return {"ename": ClusterError.__name__, "evalue": text, "traceback": []}
    return {
        "ename": getattr(answer, "ename", type(answer).__name__),
        "evalue": getattr(answer, "evalue", str(answer)),
        "traceback": [],  # IPython has printed it
    }


def _gone(rank: int) -> dict[str, Any]:
    message = f"the process of rank {rank} is gone: %mlx_dist log --ranks {rank}, then restart"
    return {"ename": ClusterError.__name__, "evalue": message, "traceback": []}
