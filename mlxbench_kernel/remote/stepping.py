"""`Stepping`: drives the stepper of a cluster's ranks, and mirrors what they measure.

A run is one hidden cell on all ranks. Whether they stop is decided by them, all after the same
step; a request to stop goes to all of them on the control channel and travels on with the
gradients. While a run is on, whatever else uses the ranks waits until they have stopped, and the
run goes on afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.cluster.turns import Show, Turns, ignore
from mlxbench_kernel.errors import BenchError, ClusterError, GivenUp, UsageError
from mlxbench_kernel.interrupts import held
from mlxbench_kernel.remote.asking import ask_ranks
from mlxbench_kernel.remote.commands import Commands
from mlxbench_kernel.remote.mirror import Mirror, State
from mlxbench_kernel.remote.on_stepper import NONE, on_stepper
from mlxbench_kernel.remote.waiting import SaidOnce, gave_up

POLL_SECONDS = 0.05  # while something changes, and at least while steps are short
SLOW_SECONDS = 0.25  # at most, while steps are long: an answer takes a rank 2 ms
IDLE_SECONDS = 0.5
BROKEN_SECONDS = 10.0  # until a step that was broken off is undone
STOP_SECONDS = 0.05  # from one request to stop to the next
ANSWER_SECONDS = 1.0

AGAIN = "pausing after this step: Ctrl-C again breaks it off"
Changed = Callable[[], None]


class Stepping(Commands):
    """The stepper of the ranks, as a notebook drives it.

    Parameters
    ----------
    cluster
        Where a `Stepper` was made on all ranks.

    Attributes
    ----------
    state : State
        How it stands, as last heard.
    histories, samples
        What each rank has measured, by rank: `History`, `ParameterHistory`.
    tell
        Is told in words what the main thread waits for.

    Raises
    ------
    UsageError
        There is no stepper on a rank.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._mirror = Mirror(cluster)
        self._turns = Turns()  # one command at a time
        self._thread: threading.Thread | None = None
        # Not Thread.join: where that is interrupted, Python 3.11 takes the thread for ended.
        self._ended = threading.Event()
        self._ended.set()
        self._wanted: tuple[int | None, str | None] | None = None  # what is played: to, until
        self._broken = False  # whether a rank died while it played
        self._within = False  # whether something is in `between`
        self._resumes = False  # whether a run goes on after that
        self._late = ""
        self._error = ""
        self._watchers: list[Changed] = []
        self.tell: Callable[[str], None] = lambda text: None
        self._wake, self._closed = threading.Event(), threading.Event()
        missing = self._mirror.poll()
        if missing:
            ranks = ", ".join(map(str, missing))
            raise UsageError(f"rank{'s' if len(missing) > 1 else ''} {ranks}: {NONE}")
        cluster.background.stepper = self.between
        threading.Thread(target=self._poll, name="mlxbench-stepping", daemon=True).start()

    @property
    def cluster(self) -> Cluster:
        """Where the ranks are."""
        return self._cluster

    def look(self) -> None:
        """Hear how it stands now: a new stepper may have been made."""
        self._mirror.poll()
        self._tell()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._cluster.size

    @property
    def state(self) -> State:
        """How it stands, as last heard."""
        found = self._mirror.state
        playing = self._is_playing() or (found.playing and self._thread is None)
        said = self._error or found.said
        doing = found.doing
        if playing:
            doing = self._late or ("playing" if doing == "paused" else doing)
        elif self._thread is not None and doing == "playing":
            playing, doing = False, "paused"  # it was playing when the last of its ranks died
        return replace(found, playing=playing, said=said, doing=doing)

    @property
    def histories(self) -> list[Any]:
        """`History` by rank."""
        return self._mirror.histories

    @property
    def samples(self) -> list[Any]:
        """`ParameterHistory` by rank."""
        return self._mirror.samples

    def watch(self, changed: Changed) -> Changed:
        """Have a function called after something new was heard, on a thread of its own.

        Returns
        -------
        function
            Ends it.
        """
        self._watchers.append(changed)
        self._wake.set()

        def end() -> None:
            with suppress(ValueError):
                self._watchers.remove(changed)

        return end

    def close(self) -> None:
        """Pause, and drive no more."""
        with suppress(BenchError):
            self.pause()
        self._closed.set()
        self._wake.set()

    # -- playing -------------------------------------------------------------------

    def play(self) -> None:
        """Take steps until something stops it; returns at once."""
        self._begin(None, None)

    def run(self, n: int) -> None:
        """Take n steps; returns at once, see `wait`."""
        if not isinstance(n, int) or n < 1:
            raise UsageError(f"run takes a number of steps, as run(100), not {n!r}")
        self.pause()
        self._begin(self._fresh().step + n, None)

    def until(self, text: str) -> None:
        """Take steps until a condition holds; returns at once, see `wait`."""
        from mlxbench_kernel.training import Condition

        Condition(text, self._fresh().measured or ("loss",))
        self._begin(None, text)

    def pause(self, waiting: Changed | None = None) -> None:
        """Stop soon, on all ranks after the same step; returns when they have.

        Parameters
        ----------
        waiting
            Is called meanwhile, some times a second.
        """
        with self._turns.taken(ignore):
            self._wanted = None
            self._hold(waiting)

    def wait(self, show: Callable[[State], None] = lambda state: None) -> State:
        """Wait until a run has stopped.

        Parameters
        ----------
        show
            Is told how it stands, some times a second.

        Raises
        ------
        KeyboardInterrupt
            After it was paused; where that was interrupted too, after the step was broken off.
        """
        try:
            while self._is_playing() or self._resumes:
                show(self.state)
                if not self._ended.wait(0.1):
                    continue
                time.sleep(POLL_SECONDS)  # it goes on when what uses the ranks has ended
        except KeyboardInterrupt:
            try:
                self.pause(lambda: show(replace(self.state, doing=f"{AGAIN} {self._late}".strip())))
            except KeyboardInterrupt:
                with held():
                    # No more than that: the thread that waits for the run frees and mends.
                    self._cluster.client.call("interrupt", self._cluster.living(), ANSWER_SECONDS)
                    self._ended.wait(BROKEN_SECONDS)
            raise
        self._mirror.poll()
        if self._error:
            raise BenchError(self._error)
        return self.state

    def _is_playing(self) -> bool:
        return not self._ended.is_set()

    def _begin(self, last: int | None, until: str | None) -> None:
        gone = set(range(self._cluster.size)) - set(self._cluster.living())
        if gone:  # else `heal` would take it for a run that was broken off
            raise ClusterError(self._cluster.why_gone(min(gone)))
        with self._turns.taken(ignore):
            self._hold()
            self._error, self._broken = "", False
            self._wanted = last, until
            self._start()

    def _start(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._work, name="mlxbench-play", daemon=True)
        self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        """Run what is wanted, as one cell on all ranks."""
        assert self._wanted is not None
        last, until = self._wanted
        try:
            steps = None if last is None else last - self._mirror.state.step
            if steps is None or steps > 0:
                self._ask("run", steps, until, result=False)
                self._mirror.poll()
                if self._mirror.state.stopped != "paused":
                    self._wanted = None
        except BenchError as error:
            self._broken = len(self._cluster.living()) < self._cluster.size
            if not self._broken:
                self._wanted = None
            self._error = str(error)
        except Exception as error:  # of the client that was closed under it, for one
            self._wanted = None
            self._error = f"{type(error).__name__}: {error}"
        finally:
            self._late = ""
            if self._error:
                with suppress(Exception):
                    self._mirror.poll()
            self._ended.set()
            self._wake.set()

    def _ask(self, name: str, *arguments: Any, result: bool = True) -> dict[int, Any]:
        said: list[str] = []
        ranks = range(self._cluster.size)
        try:
            return ask_ranks(
                self._cluster, ranks, said.append, None, name, *arguments,
                of=on_stepper, show=self._show, result=result,
            )  # fmt: skip
        except BenchError as error:
            if said:
                raise type(error)(f"{error} ({'; '.join(said)})") from None
            raise

    def _show(self, status: str) -> None:
        self._late = status if self._mirror.stands_still else ""

    def _hold(self, waiting: Changed | None = None) -> bool:
        """Have the ranks stop; whether they were playing."""
        was, waiting = False, waiting or SaidOnce(self.tell, lambda: self._late)
        while True:
            waiting()
            if self._is_playing():
                self._request_stop()
                self._ended.wait(STOP_SECONDS)
            elif self._thread is None and self._mirror.state.playing:  # for a notebook that is gone
                self._request_stop()
                self._closed.wait(STOP_SECONDS)
                self._mirror.poll()
            else:
                return was
            was = True

    def _request_stop(self) -> None:
        self._cluster.client.call("stepper_stop", self._cluster.living(), ANSWER_SECONDS)

    @contextmanager
    def between(self, show: Show = ignore) -> Iterator[None]:
        """Have a run wait while the block uses the ranks, all of them after the same step.

        Parameters
        ----------
        show
            Is told who is waited for, see `Turns.taken`.

        Raises
        ------
        GivenUp
            A Ctrl-C came before they had stopped; the block has not begun.
        """
        if threading.current_thread() is self._thread:
            yield
            return
        with self._turns.taken(show):
            if self._within:  # what is inside goes on when what is around it has ended
                yield
                return
            self._within = True
            try:
                with self._stopped():
                    yield
            finally:
                self._within = self._resumes = False

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """Have a run stop, and go on after the block."""
        if self._thread is None:
            self._mirror.poll()
            if self._mirror.state.playing:  # for a notebook that is gone: it goes on for this
                self._wanted = self._mirror.state.wanted
        self._resumes = self._is_playing()
        try:
            playing = self._hold()
        except KeyboardInterrupt:
            raise GivenUp(gave_up(self._late)) from None
        wanted, broken = self._wanted, self._broken  # it may have come to its end meanwhile
        try:
            yield
        except KeyboardInterrupt:
            wanted = None
            raise
        finally:
            whole = len(self._cluster.living()) == self._cluster.size
            if wanted is not None and whole and (playing or broken):
                self._wanted, self._error, self._broken = wanted, "", False
                self._mirror.poll()
                self._start()

    def _command_all(self, name: str, *arguments: Any) -> dict[int, Any]:
        """Have all ranks do something, between two steps; what each of them returned."""
        with self._cluster.between(), self.between():
            self._error = ""
            try:
                found = self._ask(name, *arguments)
            finally:
                self._mirror.poll()
                self._tell()
        return found

    # -- what is heard ---------------------------------------------------------------

    def _fresh(self) -> State:
        self._mirror.poll()
        return self._mirror.state

    def _poll(self) -> None:
        last: Mapping[str, Any] | None = None
        pace = POLL_SECONDS
        while not self._closed.is_set():
            busy = self._is_playing() or self._mirror.state.playing
            self._wake.wait(pace if busy else IDLE_SECONDS)
            self._wake.clear()
            if self._cluster.client.closed or self._closed.is_set():
                return
            if not (busy or self._watchers):
                continue
            with suppress(Exception):  # a cluster that goes down meanwhile
                self._mirror.poll()
                pace = self._pace()
            now = vars(self.state)
            if now != last:
                last = now
                self._tell()
            self._closed.wait(POLL_SECONDS / 2)

    def _pace(self) -> float:
        """Seconds until something is new: two looks at a step are enough."""
        histories = self._mirror.histories
        last = histories[0].last(self._mirror.state.branch) if histories else {}
        return min(max(POLL_SECONDS, last.get("seconds", 0.0) / 2), SLOW_SECONDS)

    def _tell(self) -> None:
        for changed in list(self._watchers):
            changed()
