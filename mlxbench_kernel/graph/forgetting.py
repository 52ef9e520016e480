"""Traces of ``mx.compile`` that a capture has made are not kept by MLX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlxbench_kernel import native
from mlxbench_kernel.graph.trace_history import by_capture, watch_calls


@contextmanager
def forgetting() -> Iterator[None]:
    """Have MLX forget, after the block, the traces of the functions that were traced in it.

    What a function reads besides its arguments becomes part of its trace, and a capture puts that
    back: an optimizer that has no state yet, a learning rate that the call has changed. Traces
    that were there before are used; but of a function that had to be traced for other arguments
    MLX can only forget all of them (``detail::compile_erase``), so that it is traced again when
    it is called next.
    """
    module = native.load()
    if module is None:
        yield
        return
    who, outermost = object(), False
    try:
        watch_calls(who, True)
        outermost = module.note_traces()
        with by_capture():
            yield
    finally:
        if outermost:
            module.forget_traces()
        watch_calls(who, False)
