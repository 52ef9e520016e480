"""Runs one cell on ranks and waits for it, showing what comes and who is still busy."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from ipyparallel.client.client import MessageFuture

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.sink import CellOutputSink
from mlxbench_kernel.cluster.state import SILENT
from mlxbench_kernel.cluster.watch import GroupWatch
from mlxbench_kernel.errors import CellTimeout, ClusterError
from mlxbench_kernel.interrupts import held
from mlxbench_kernel.rank.requests import LOST, META, RELEASED

REDRAW_SECONDS = 0.1
# What MLX's ring writes, many times, when a connection ends (mlx/distributed/ring/ring.cpp).
_NOISE = re.compile(
    r"^\[ring\] (Socket \d+ was closed by the peer|Too many send/recv errors\..*"
    r"|(Sending to|Receiving from) socket .*)\n",
    re.MULTILINE,
)
GRACE_SECONDS = 0.15  # after one rank has raised: the others mostly raise the same
LOOK_SECONDS = 0.5
STRAGGLER_SECONDS = 2.5
OUTPUT_SECONDS = 2.0
RETRY_SECONDS = 0.02
INTERRUPT_SECONDS = 0.3  # until ranks that wait in a collective are freed
SETTLE_SECONDS = 0.6
STUCK_SECONDS = 1.0  # after a failure, where ranks cannot be freed


@dataclass
class CellResult:
    """What became of a cell.

    Attributes
    ----------
    seconds
        From sending the cell to the last rank's end.
    errors
        For each rank that raised: ``ename``, ``evalue``, ``traceback`` (list of str).
    freed
        Ranks that were freed from a collective, which is no error of theirs.
    """

    seconds: float = 0.0
    errors: dict[int, dict[str, Any]] = field(default_factory=dict)
    freed: list[int] = field(default_factory=list)


class CellRun:
    """One cell, which is sent when somebody waits for it.

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
    watch
        Looks at the group meanwhile.
    doing
        Gives what ranks are doing, by rank.
    about
        What the ranks have to know of the cell.
    gone
        Says why a rank is gone, and what to type.

    Attributes
    ----------
    result : CellResult
        What became of it, as far as it has come.
    left_running : bool
        Whether time was up before anything went wrong: then nothing is to be broken off.
    """

    def __init__(
        self,
        client: BenchClient,
        code: str,
        ranks: Sequence[int],
        output: CellOutputSink | None,
        watch: GroupWatch,
        doing: Callable[[Sequence[int]], dict[int, str]],
        about: dict[str, Any],
        gone: Callable[[int], str],
    ) -> None:
        self._client = client
        self._code = code
        self._ranks = ranks
        self._about = about
        self._output = output
        self._watch = watch
        self._doing = doing
        self._why_gone = gone
        self._started = time.monotonic()
        self.result = CellResult()
        self._ended: set[int] = set()
        self._seen: set[int] = set()
        self._secondary: dict[int, dict[str, Any]] = {}
        self._failed: dict[int, float] = {}
        self._over = False
        self.left_running = False
        self._showing_late = False
        self._states: dict[int, str] = {}
        self._replies: dict[int, MessageFuture] = {}
        self._hurry: Future[None] = Future()  # whether something is to be shown at once

    def _start(self) -> None:
        self._client.forget_cells()
        self._replies = self._client.start_cells(
            self._code, self._ranks, self._message, self._about
        )

    def _message(self, rank: int, message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "error":
            if _is_secondary(content):
                self._secondary[rank] = content  # it follows from another rank's
                return
            content = {**content, "traceback": _without_release(content["traceback"])}
            self.result.errors[rank] = content
        if kind == "stream":
            content = {**content, "text": _NOISE.sub("", content["text"])}
            if not content["text"]:
                return
        if self._output is not None:
            hurry = self._output.message(rank, kind, content)
            if hurry and not self._hurry.done():
                self._hurry.set_result(None)
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
        """Send the cell and wait until all ranks are done.

        Parameters
        ----------
        timeout
            Seconds to wait; None for as long as it takes.

        Raises
        ------
        CellTimeout
            Time is up; nothing was aborted, the message says who is doing what.
        CollectiveMismatch
            The ranks disagree on a collective.
        KeyboardInterrupt
            After the ranks were interrupted too.
        """
        try:
            with held():  # once it is sent, it must be known whom to interrupt
                self._start()
            self._wait(timeout)
        except KeyboardInterrupt:
            with held():
                self._interrupt()
            raise
        self._finish()
        if self._watch.mismatch is not None:
            raise self._watch.mismatch
        return self.result

    def _interrupt(self) -> None:
        """Stop the cell everywhere; whoever waits in a collective is freed."""
        started = time.monotonic()
        idle = self.busy
        while idle and time.monotonic() - started < INTERRUPT_SECONDS:
            was_busy = self._client.call("interrupt", idle, timeout=INTERRUPT_SECONDS)
            # One that is idle, and has not replied, has still to begin with the cell.
            idle = [rank for rank in self.busy if was_busy.get(rank) is False]
            wait([self._replies[rank] for rank in idle], timeout=RETRY_SECONDS)
        wait(self._replies.values(), timeout=INTERRUPT_SECONDS)
        if self.busy:
            if self._watch.is_waiting(self.busy):
                self._watch.free(list(self._replies), "interrupted")
            wait(self._replies.values(), timeout=SETTLE_SECONDS)
        self._finish()
        if self.busy and not self._watch.is_stuck(self.busy):
            ranks = ",".join(map(str, self.busy))
            raise CellTimeout(
                f"interrupted, but {self._who()}: what MLX computes ends before it stops. The next "
                f"cell waits for that; %mlx_dist restart --ranks {ranks} gives it up"
            ) from None

    def _wait(self, timeout: float | None) -> None:
        status, asked, looked = "", self._started, self._started
        states: dict[int, str] = {}
        while busy := self.busy:
            self._settle()
            self._see_failures(busy)
            now = time.monotonic()
            waited = now - self._started
            if timeout is not None and waited >= timeout:
                self._finish()
                self._states = self._doing(busy) | states
                self.left_running = not (self.result.errors or self._watch.freed)
                raise CellTimeout(
                    f"no end after {timeout:g} s: {self._who()}. Nothing was aborted: "
                    "%mlx_dist interrupt stops them, %mlx_dist status looks again"
                )
            if now - looked > LOOK_SECONDS:
                looked = now
                failed = max(self._failed.values(), default=now)
                if now - failed > STUCK_SECONDS and self._watch.is_stuck(busy):
                    return
                states = self._watch.look(busy)
                if waited > STRAGGLER_SECONDS and now - asked > 1.0:
                    asked = now
                    self._states = self._doing(busy) | states
                    status = f"{waited:.0f} s · {self._who()}" if self._is_uneven(busy) else ""
            if self._hurry.done():
                self._hurry = Future()
            if self._output is not None:
                self._output.refresh(status)
            left = REDRAW_SECONDS if timeout is None else min(REDRAW_SECONDS, timeout - waited)
            waited_for = [*(self._replies[rank] for rank in busy), self._hurry]
            wait(waited_for, timeout=max(left, 0.0), return_when=FIRST_COMPLETED)

    def fault(self) -> str:
        """What went wrong with the cell, in words."""
        for rank, reply in self._replies.items():
            if reply.done() and not self._came_back(reply):
                return self._failure(rank, gone=True)
        if self._watch.mismatch is not None:
            return "the ranks disagreed on a collective"
        errors = [rank for rank in self.result.errors if rank not in self._secondary]
        return self._failure(errors[0], gone=False) if errors else "the cell was interrupted"

    def failed_alike(self) -> bool:
        """Whether all ranks have raised the same."""
        said = {(error["ename"], error["evalue"]) for error in self.result.errors.values()}
        return (
            len(self.result.errors) == len(self._replies)
            and self._watch.whole
            and len(said) == 1
            and not any(name == "KeyboardInterrupt" for name, _ in said)
        )

    def _see_failures(self, busy: list[int]) -> None:
        """When the cell has failed on a rank, free those who would wait for it."""
        for rank, reply in self._replies.items():
            if rank in self._seen or not reply.done():
                continue
            gone = not self._came_back(reply)
            if not (gone or isinstance(reply.result(), BaseException)):
                self._seen.add(rank)
                continue
            since = self._failed.setdefault(rank, time.monotonic())
            if gone or time.monotonic() - since > GRACE_SECONDS:
                self._seen.add(rank)
                self._watch.raised(rank, busy, self._failure(rank, gone))

    def _failure(self, rank: int, gone: bool) -> str:
        if gone:
            return f"the process of rank {rank} is gone"
        error = self.result.errors.get(rank) or self._secondary.get(rank)
        return f"rank {rank} raised {error['ename']}" if error else f"rank {rank} has failed"

    def _is_uneven(self, busy: list[int]) -> bool:
        """Whether it says something to name the busy ranks: all alike is just a long cell."""
        states = self._states.values()
        silent = any(state.startswith(SILENT) for state in states)
        return silent or len(set(states)) > 1 or len(busy) < len(self._replies)

    def _who(self) -> str:
        """What becomes of the ranks whose cell has not ended rightly, in words."""
        busy = self.busy
        states = {
            rank: "gone"
            for rank, reply in self._replies.items()
            if reply.done() and not self._came_back(reply)
        }
        waited_for = any(state.startswith("waiting") for state in self._states.values())
        if waited_for:
            ended = [r for r, reply in self._replies.items() if r not in states and r not in busy]
            states |= dict.fromkeys(ended, "through with this cell, and will not come")
        states |= self._states if self._states.keys() >= set(busy) else self._doing(busy)
        said = [f"rank {rank} is {states[rank]}" for rank in sorted(states)]
        return ", ".join(said) + (" (%mlx_dist interrupt frees them)" if waited_for else "")

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
                text = self._why_gone(rank)
                gone = {"ename": ClusterError.__name__, "evalue": text, "traceback": []}
                self._message(rank, {"header": {"msg_type": "error"}, "content": gone})
            elif isinstance(answer, BaseException):
                if rank not in self.result.errors and rank not in self._secondary:
                    said = {"header": {"msg_type": "error"}, "content": _unsaid(answer)}
                    self._message(rank, said)
            else:
                self._watch.note(rank, answer._content.get(META))
        self._look_at_the_end()
        self._settle()
        if self._output is not None:
            self._output.finish()
        self._over = True

    def _look_at_the_end(self) -> None:
        """Compare what the ranks have asked for, and tell errors from what follows from them."""
        if self._watch.whole and not self._watch.freed and not self.busy:
            self._watch.look([rank for rank in self.result.errors if rank in self._replies])
            self._watch.compare()
            self._watch.compare_pairs()
        if self.result.errors or self._watch.freed:
            self.result.freed = sorted(self._secondary)
            return
        for rank, content in self._secondary.items():  # nobody else says why
            self.result.errors[rank] = content
            if self._output is not None:
                self._output.message(rank, "error", content)
        if not (self.busy or self.result.errors):
            self._watch.number_protected()

    @staticmethod
    def _came_back(reply: Any) -> bool:
        return type(reply.result()).__name__ != "RemoteError" or (
            reply.result().ename != "EngineError"
        )


def _is_secondary(error: dict[str, Any]) -> bool:
    """Whether an error only says that a collective was broken off."""
    return RELEASED in error["evalue"] or LOST in error["evalue"]


def _without_release(traceback: list[str]) -> list[str]:
    """An error, without that which freed the rank from a collective so that it could come."""
    for number, entry in enumerate(traceback[:-1]):
        if RELEASED in entry:
            return [*traceback[:number], traceback[-1]]
    return traceback


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
