"""When functions of ``mx.compile`` are traced, for what, and by which line.

MLX calls the Python of a compiled function only to trace it. So what is compiled while a watch is
on gets a stand-in for that function, and MLX's own compiled function around it: a call that needs
no trace never comes here. What the native module adds to each call, to know when a trace ends, is
one call in C and a look at one variable (``native/compiled_calls.h``).
"""

from __future__ import annotations

import functools
import gc
import logging
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import mlx.core as mx

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.trace_history import (
    COMPILED,
    LOCK,
    MOST_RECORDS,
    WATCHING,
    History,
    Noted,
    watch_calls,
)
from mlxbench_kernel.graph.traces import Trace, Traces

_LOG = logging.getLogger(__name__)


class Watch:
    """Notes traces until it is stopped; made by `watch_retracing`."""

    def __init__(self, notice: Callable[[Trace], None] | None) -> None:
        self._notice = notice
        self._total = 0
        self._records: deque[Trace] = deque(maxlen=10 * MOST_RECORDS)
        native.load()  # compiled now, where it is not yet, rather than in the first trace

    def traces(self) -> Traces:
        """All that has been noted since the watch began, whatever function it was of."""
        with LOCK:
            return Traces("Everything compiled", self._records, self._total)

    def function(self, compiled: Callable[..., Any], shapeless: bool = False) -> Any:
        """Compile a function again, so that its traces are seen from now on.

        Parameters
        ----------
        compiled
            What ``mx.compile`` gave before the watch began.
        shapeless
            As it was given then: that cannot be read from `compiled`.

        Returns
        -------
        callable
            To be used instead, with the same ``inputs=`` and ``outputs=``; `compiled` itself
            where its traces are seen already. It begins without traces.

        Raises
        ------
        UsageError
            `compiled` is nothing that ``mx.compile`` gave, or the watch was stopped.
        """
        if _history(compiled) is not None:
            return compiled
        if self not in WATCHING.watchers:
            raise UsageError("this watch was stopped: begin another one with watch_retracing()")
        parts = gc.get_referents(compiled) if _is_compiled(compiled) else []
        # Its type, then what it was given: inputs, outputs, function (python/src/mlx_func.cpp).
        if len(parts) < 4 or not callable(parts[-1]):
            raise UsageError(
                f"{_name(compiled)} is no function of mx.compile: give what mx.compile returned, "
                "or call mx.compile after watch_retracing()"
            )
        inputs, outputs, function = parts[-3:]
        return mx.compile(function, inputs=inputs, outputs=outputs, shapeless=shapeless)

    def stop(self) -> None:
        """Note nothing any more; ``mx.compile`` is MLX's again when the last watch stops.

        What was noted stays. Functions compiled meanwhile are seen again by a later watch.
        """
        with LOCK:
            WATCHING.watchers = tuple(each for each in WATCHING.watchers if each is not self)
            if not WATCHING.watchers:
                _put_back()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        with LOCK:
            if not WATCHING.watchers:
                _replace()
            WATCHING.watchers = (*WATCHING.watchers, self)

    def add(self, trace: Trace) -> None:
        """Keep a trace and tell of it."""
        with LOCK:
            self._total += 1
            self._records.append(trace)
        if self._notice is None:
            return
        try:
            self._notice(trace)
        except Exception:  # the user's call goes on as without a watch
            _LOG.exception("what watch_retracing was given to call failed")


def watch_retracing(notice: Callable[[Trace], None] | None = None) -> Watch:
    """Note when functions are traced that are compiled from now on.

    Calls that need no trace run no Python of ours. Functions compiled before cannot be seen into;
    see `Watch.function`.

    Parameters
    ----------
    notice
        Called after each trace, in its thread. What it raises is logged.

    Returns
    -------
    Watch
        To be stopped, or used in a ``with`` statement.

    Examples
    --------
    >>> watch = watch_retracing(print)
    >>> step = mx.compile(step, inputs=state, outputs=state)
    >>> step(x); step(x[:17])
    >>> traces(step)
    >>> watch.stop()
    """
    watch = Watch(notice)
    watch._start()
    return watch


def traces(compiled: Callable[..., Any]) -> Traces:
    """What a compiled function was traced for.

    Parameters
    ----------
    compiled
        What ``mx.compile`` gave while a watch was on, or a function around it that
        ``functools.wraps`` made.

    Raises
    ------
    UsageError
        It was compiled before the watch began, or is not compiled.
    """
    history = _history(compiled)
    if history is not None:
        return history.of(history.name)
    name = _name(compiled)
    if _is_compiled(compiled):
        raise UsageError(
            f"{name} was compiled while no watch was on, so its traces cannot be seen: after "
            f"watch = watch_retracing() run its mx.compile again, or {name} = "
            f"watch.function({name})"
        )
    raise UsageError(
        f"{name} is not compiled, so it is never traced: give what mx.compile returned after "
        "watch_retracing()"
    )


_original: Callable[..., Any] = mx.compile
_replaced: Callable[..., Any] | None = None
_stand_ins: WeakValueDictionary[int, Noted] = WeakValueDictionary()


def _replace() -> None:
    global _original, _replaced
    watch_calls(WATCHING, True)
    WATCHING.compilations.clear()
    original = mx.compile
    if original is _replaced:  # it could not be put back, and still notes
        return

    @functools.wraps(original)
    def compile(*arguments: Any, **keywords: Any) -> Any:
        function = arguments[0] if arguments else keywords.get("fun")
        known = issubclass(type(function), Noted)  # its class would say the function's
        if not WATCHING.watchers or known or not callable(function):
            return original(*arguments, **keywords)
        noted = _stand_in(function)
        if arguments:
            compiled = original(noted, *arguments[1:], **keywords)
        else:
            compiled = original(**{**keywords, "fun": noted})
        given = dict(zip(("inputs", "outputs", "shapeless"), arguments[1:], strict=False))
        given.update(keywords)
        noted.mlxbench_history.compiled(given.get("inputs"), given.get("shapeless", False))
        return compiled

    _original, _replaced = original, compile
    mx.compile = compile


def _put_back() -> None:
    watch_calls(WATCHING, False)
    # Where somebody else has replaced it since, theirs calls ours, which passes everything on.
    if mx.compile is _replaced:
        mx.compile = _original


def _stand_in(function: Callable[..., Any]) -> Noted:
    with LOCK:
        found = _stand_ins.get(id(function))
        if found is None:  # what is found holds its function, so no other one has that id
            found = Noted(function)
            _stand_ins[id(function)] = found
        return found


def _history(compiled: Any) -> History | None:
    seen: set[int] = set()
    while compiled is not None and id(compiled) not in seen:
        seen.add(id(compiled))
        history = getattr(compiled, "mlxbench_history", None)
        if isinstance(history, History):
            return history
        compiled = getattr(compiled, "__wrapped__", None)
    return None


def _is_compiled(value: Any) -> bool:
    """Whether ``mx.compile`` gave it; its ``__class__`` is that of the function in it."""
    return type(value) is COMPILED


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
