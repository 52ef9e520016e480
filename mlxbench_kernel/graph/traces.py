"""Records of what compiled functions were traced for, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxbench_kernel.graph.call_key import Leaves, differences, shortened
from mlxbench_kernel.lines import Line
from mlxbench_kernel.units import quantity

_LEAVES_SHOWN = 6


@dataclass(frozen=True)
class Trace:
    """One time that MLX ran the Python of a compiled function to make a graph of it.

    Attributes
    ----------
    function
        Name of the function.
    number
        Counted from 1, per compiled function.
    compilation
        Which ``mx.compile`` of this code made the compiled function, counted from 1.
    arguments
        Arrays with shapes and dtypes, and constants.
    state
        The arrays of ``inputs=``.
    line
        Which line called.
    seconds
        From the start of the trace to the end of the call: running the Python, then MLX
        simplifies and fuses the graph. Without the native module only the first.
    python_seconds
        For running the Python.
    changes : tuple of str
        What differs from the earlier trace that differs least, as ``x: (32, 784) → (17, 784)``;
        empty for the first trace.
    shapeless
        As given to ``mx.compile``.
    forgotten
        Whether MLX had such a trace until a capture had it forget that (`forgetting`).
    error
        What the function raised, "" where it did not. MLX keeps no such trace.
    thread, stream
        Name of the thread and text of the default stream: MLX keeps traces apart for each.
    """

    function: str
    number: int
    compilation: int
    arguments: Leaves
    state: Leaves
    line: Line
    seconds: float
    python_seconds: float
    changes: tuple[str, ...]
    shapeless: bool
    forgotten: bool
    error: str
    thread: str
    stream: str

    @property
    def traced_for(self) -> str:
        """Arguments and state in a few words."""
        shown = [f"{leaf.path}: {leaf}" for leaf in self.arguments[:_LEAVES_SHOWN]]
        if len(self.arguments) > _LEAVES_SHOWN:
            shown.append(f"{len(self.arguments) - _LEAVES_SHOWN} more")
        if self.state:
            shown.append(
                f"{len(self.state)} {'array' if len(self.state) == 1 else 'arrays'} of inputs="
            )
        return ", ".join(shown) or "no arguments"

    @property
    def why(self) -> str:
        """What differed, and what else is to be known of it, in one line."""
        if self.forgotten:
            why = "again, after a capture with arguments that it was not traced for"
        elif self.changes:
            why = "; ".join(self.changes)
        elif self.compilation > 1:
            why = f"first, of mx.compile number {self.compilation} of this code"
        else:
            why = "first"
        return f"{why} (raised {self.error})" if self.error else why

    def __str__(self) -> str:
        again = "traced" if self.number == 1 else f"traced again (number {self.number})"
        return (
            f"{self.function} was {again} in {quantity(self.seconds)}s at {self.line}: {self.why}"
        )


class Traces:
    """Traces of one compiled function, or of all that a watch has seen.

    What draws tables needs `header`, `rows` and `caption`; as text it is a table already.

    Parameters
    ----------
    title
        Of what.
    records : sequence of Trace
        The oldest first.
    total
        How many there were; more than there are records where old ones were let go.
    inside
        Calls that became part of the trace of another compiled function.
    uncompiled
        Calls that ran the Python without a trace that is kept: in ``mx.grad`` and other
        transformations, or while compiling is off.
    uncompiled_at
        The last line that made such a call; None where there was none.
    compilations
        How often ``mx.compile`` was called for this code.
    """

    header = ("#", "ms", "called at", "differs in", "traced for")

    def __init__(
        self,
        title: str,
        records: Sequence[Trace],
        total: int,
        inside: int = 0,
        uncompiled: int = 0,
        uncompiled_at: Line | None = None,
        compilations: int = 1,
    ) -> None:
        self.title = title
        self.records = list(records)
        self.total = total
        self.inside = inside
        self.uncompiled = uncompiled
        self.uncompiled_at = uncompiled_at
        self.compilations = compilations

    @property
    def retraces(self) -> list[Trace]:
        """Those that were not the first of their function, nor made again after a capture."""
        return [trace for trace in self.records if trace.changes]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Texts for each trace, one per column of `header`."""
        names = len({trace.function for trace in self.records}) > 1
        return [
            (
                f"{trace.function} {trace.number}" if names else str(trace.number),
                f"{trace.seconds * 1e3:.2f}",
                str(trace.line),
                trace.why,
                trace.traced_for,
            )
            for trace in self.records
        ]

    @property
    def caption(self) -> str:
        """Everything that is no trace."""
        times = "once" if self.total == 1 else f"{self.total} times"
        parts = [f"{self.title} was traced {times}" if self.total else f"{self.title}: no trace"]
        if self.total > len(self.records):
            parts[0] += f", the last {len(self.records)} are shown"
        if self.compilations > 1:
            parts.append(
                f"mx.compile was called {self.compilations} times for this code, and each result "
                "is traced for itself: in a loop, compile once before it"
            )
        if self.uncompiled:
            parts.append(
                f"{_calls(self.uncompiled)} ran the Python without compiling, last at "
                f"{self.uncompiled_at}: in mx.grad or another transformation (compile what calls "
                "that), or compiling is off"
            )
        if self.inside:
            parts.append(f"{_calls(self.inside)} became part of another function's trace")
        return ". ".join(parts) + "."

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        if not self.records:
            return self.caption
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, self.caption])


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"


def changes_since(
    earlier: Sequence[Trace],
    forgotten: int,
    arguments: Leaves,
    state: Leaves,
    shapeless: bool,
    thread: str,
    stream: str,
) -> tuple[tuple[str, ...], bool]:
    """How a call differs from the earlier trace that it differs least from.

    Parameters
    ----------
    earlier
        The oldest first; of several that differ as little, the latest counts.
    forgotten
        The number of the last one that a capture has had MLX forget.
    arguments, state, shapeless, thread, stream
        Of the call.

    Returns
    -------
    tuple
        The differences, and whether there are none because that trace was forgotten.
    """
    nearest: list[str] | None = None
    for trace in reversed(earlier):
        found = differences(trace.arguments, arguments, shapeless)
        found += differences(trace.state, state, shapeless)
        if trace.thread != thread:
            found.append(f"thread: {trace.thread} → {thread}")
        if trace.stream != stream:
            found.append(f"default stream: {trace.stream} → {stream}")
        if trace.shapeless != shapeless:
            found.append(f"shapeless: {trace.shapeless} → {shapeless}")
        if not found and trace.error:
            found.append(f"nothing, but trace {trace.number} raised {trace.error}")
        if not found and trace.number <= forgotten:
            return (), True
        if not found:
            return (f"nothing since trace {trace.number}: MLX had dropped it",), False
        if nearest is None or len(found) < len(nearest):
            nearest = found
    return (() if nearest is None else shortened(nearest)), False
