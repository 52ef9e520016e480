"""What is noted when MLX calls the Python of a compiled function.

MLX does that only to trace it, or where it does not compile: while compiling is off, and where an
argument belongs to a trace or transformation that goes on (``detail::compile``, MLX,
``mlx/compile.cpp``). Only the first is a trace that it keeps.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import FrameType
from typing import Any, Protocol

import mlx.core as mx

from mlxbench_kernel import native
from mlxbench_kernel.graph.call_key import Leaves, argument_leaves, arrays, state_leaves
from mlxbench_kernel.graph.stand_in import StandIn
from mlxbench_kernel.graph.traces import Trace, Traces, changes_since
from mlxbench_kernel.lines import Line, calling_line

MOST_RECORDS = 1000  # that are kept of one function
LOCK = threading.RLock()
# Arguments, state, shapeless, thread, stream: what MLX keeps a trace by.
_About = tuple[Leaves, Leaves, bool, str, str]


class Watcher(Protocol):
    """Who is told."""

    def add(self, trace: Trace) -> None:
        """A trace was made."""


class Watching:
    """Who watches now.

    Attributes
    ----------
    watchers : tuple of Watcher
        While there is none, nothing is noted.
    compilations
        Calls of ``mx.compile`` by the file and the line of the code that it was given.
    """

    def __init__(self) -> None:
        self.watchers: tuple[Watcher, ...] = ()
        self.compilations: Counter[tuple[str, int]] = Counter()


class _Thread(threading.local):
    """What goes on in this thread."""

    def __init__(self) -> None:
        self.depth = 0  # of traces in traces
        self.captured = False


COMPILED = type(mx.compile(lambda: None))
WATCHING = Watching()
_watchers_of_calls: set[object] = set()
_here = _Thread()


def watch_calls(who: object, on: bool) -> None:
    """Have the native module see calls of compiled functions while anybody wants it to."""
    with LOCK:
        (_watchers_of_calls.add if on else _watchers_of_calls.discard)(who)
        module = native.load()
        if module is not None:
            module.watch_calls(COMPILED, bool(_watchers_of_calls))


@contextmanager
def by_capture() -> Iterator[None]:
    """Traces in the block, in this thread, are those of a capture, which MLX is to forget."""
    before, _here.captured = _here.captured, True
    try:
        yield
    finally:
        _here.captured = before


class Noted(StandIn):
    """What ``mx.compile`` is given in place of a function; MLX calls it to trace.

    One per function, because MLX keeps its traces by the identity of the function: two
    ``mx.compile`` of one function share them, and with one stand-in they still do.
    """

    __slots__ = ("mlxbench_history",)

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.mlxbench_history = History(function)

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        history = self.mlxbench_history
        if _here.captured:
            if history.is_traced(self.mlxbench_function, arguments, keywords):
                history.forget(self)
            return self.mlxbench_function(*arguments, **keywords)
        if not WATCHING.watchers:
            return self.mlxbench_function(*arguments, **keywords)
        return history.call(self.mlxbench_function, arguments, keywords, sys._getframe(1))


class History:
    """The traces of one function.

    Attributes
    ----------
    inputs
        Of the latest ``mx.compile`` of it, as `shapeless`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        kind = type(function)
        self.name = str(getattr(function, "__qualname__", kind.__qualname__))
        self.name = self.name.rpartition("<locals>.")[2]
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        # Of what has no code of its own each is for itself.
        self._code = (code.co_filename, code.co_firstlineno) if code else None
        self.compilation = 0
        self.inputs: Any = None
        self.shapeless = False
        self.records: deque[Trace] = deque(maxlen=MOST_RECORDS)
        self.total = self.inside = self.uncompiled = 0
        self.uncompiled_at: Line | None = None
        self._several = False
        self._forgotten = 0  # traces that a capture has had MLX forget: so many, the oldest
        self._states: dict[Leaves, Leaves] = {}

    def compiled(self, inputs: Any, shapeless: bool) -> None:
        """``mx.compile`` was called."""
        with LOCK:
            self._several = self._several or (self.compilation > 0 and inputs is not self.inputs)
            if self._code is None:
                self.compilation += 1
            else:
                WATCHING.compilations[self._code] += 1
                self.compilation = WATCHING.compilations[self._code]
            self.inputs, self.shapeless = inputs, shapeless

    def call(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        frame: FrameType,
    ) -> Any:
        """Call the function, and note it where that is a trace."""
        if not self.is_traced(function, arguments, keywords):
            self._count_untraced(frame)
            return function(*arguments, **keywords)
        about = self._about(function, arguments, keywords)
        _here.depth += 1
        error = ""
        began = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            python = time.perf_counter() - began
            _here.depth -= 1
            line = calling_line(frame)
            _when_ended(lambda: self._note(about, line, time.perf_counter() - began, python, error))

    def forget(self, noted: Noted) -> None:
        """A capture made a trace, and MLX is to forget all those of this function."""
        module = native.load()
        if module is not None:
            module.note_trace(noted)
            self._forgotten = self.total

    def of(self, title: str) -> Traces:
        """What has been noted."""
        with LOCK:
            return Traces(
                title,
                self.records,
                self.total,
                self.inside,
                self.uncompiled,
                self.uncompiled_at,
                self.compilation if self._code is None else WATCHING.compilations[self._code],
            )

    def is_traced(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> bool:
        """Whether this call is a trace that MLX keeps.

        For a trace MLX makes placeholders for all arrays; otherwise the function gets the arrays
        that the compiled function was called with, which may be placeholders of others.
        """
        module = native.load()
        given = list(arrays((arguments, keywords)))
        state = [] if self._several else list(arrays(self.inputs))
        if module is None or not (given or state):
            return not (given and _here.depth) and not self._is_known(
                self._about(function, arguments, keywords)
            )
        if not all(module.is_placeholder(array) for array in chain(given, state)):
            return False
        called = next(arrays(module.call_arguments()), None)
        return not given or called is None or module.array_id(called) != module.array_id(given[0])

    def _is_known(self, about: _About) -> bool:
        """Whether MLX has this trace already, so that the call cannot be one."""
        with LOCK:
            return any(
                about == (trace.arguments, trace.state, trace.shapeless, trace.thread, trace.stream)
                for trace in self.records
                if not trace.error
            )

    def _about(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> _About:
        state = state_leaves(self.inputs)
        module = native.load()
        if self._several and module is not None:  # the call may be of an earlier mx.compile
            state = state if all(map(module.is_placeholder, arrays(self.inputs))) else ()
        with LOCK:
            state = self._states.setdefault(state, state)  # thousands of leaves, seldom new ones
        return (
            argument_leaves(function, arguments, keywords),
            state,
            self.shapeless,
            threading.current_thread().name,
            str(mx.default_stream(mx.default_device())),
        )

    def _count_untraced(self, frame: FrameType) -> None:
        if _here.depth:
            with LOCK:
                self.inside += 1
            return
        line = calling_line(frame)
        with LOCK:
            self.uncompiled += 1
            self.uncompiled_at = line

    def _note(
        self,
        about: _About,
        line: Line,
        seconds: float,
        python_seconds: float,
        error: str,
    ) -> None:
        arguments, state, shapeless, thread, stream = about
        with LOCK:
            self.total += 1
            changes, forgotten = changes_since(self.records, self._forgotten, *about)
            trace = Trace(
                function=self.name,
                number=self.total,
                compilation=self.compilation,
                arguments=arguments,
                state=state,
                line=line,
                seconds=seconds,
                python_seconds=python_seconds,
                changes=changes,
                shapeless=shapeless,
                forgotten=forgotten,
                error=error,
                thread=thread,
                stream=stream,
            )
            self.records.append(trace)
        for watcher in WATCHING.watchers:
            watcher.add(trace)


def _when_ended(note: Callable[[], None]) -> None:
    """Call at the end of the call of the compiled function; now, where that is not told."""
    module = native.load()
    if module is None:
        note()
    else:
        module.call_when_ended(note)
