"""Limits of MLX on ranks: what they are, what another one would do, and setting it."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as ui

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.memory.limits import NAMES as LIMITS
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets.controls import Ask, button, field, row, say
from mlxbench_kernel.widgets.memory_tables import limits

ALL = -1


class LimitsPanel:
    """The panel.

    Parameters
    ----------
    memory
        Whose limits.
    ask
        Runs a command where cells run, after them.
    foresee
        Runs a command that waits for nothing.
    """

    title = "Limits"

    def __init__(self, memory: Memory, ask: Ask, foresee: Ask) -> None:
        self._memory, self._ask = memory, ask
        self.ranks = ui.Dropdown(options=self._options(), layout={"width": "8em"})
        self.fields = {name: field(f"{name} limit, as 12GB or 75%", self._set) for name in LIMITS}
        for each in self.fields.values():
            each.observe(lambda _change: foresee("", self._foresee), "value")
        self.said, self.table = ui.HTML(), ui.HTML()
        self.widget = ui.VBox(
            [
                self.table,
                row(self.ranks, *self.fields.values(), button("Set limits", self._set)),
                self.said,
                row(
                    button("Clear cache", self._clear, tooltip="Give MLX's cache back"),
                    button("Reset peak", self._reset, tooltip="Have the peak begin anew"),
                ),
            ]
        )

    def show(self, opened: bool) -> None:
        """Show the limits as last heard."""
        memory = self._memory
        if len(self.ranks.options) != memory.size + 1:
            self.ranks.options = self._options()
        say(self.table, limits(memory)._repr_html_())

    def _options(self) -> list[tuple[str, int]]:
        each = [(f"rank {rank}", rank) for rank in range(self._memory.size)]
        return [("all ranks", ALL), *each]

    def _chosen(self) -> list[int] | None:
        return None if self.ranks.value == ALL else [int(self.ranks.value)]

    def _sizes(self) -> dict[str, Any]:
        typed = {name: each.value.strip() for name, each in self.fields.items()}
        return {name: text for name, text in typed.items() if text}

    def _foresee(self) -> None:
        sizes = self._sizes()
        try:
            said = self._memory.said_beforehand(self._chosen(), **sizes) if sizes else ""
        except BenchError as error:
            said = str(error)
        self.said.value = "".join(f"<div>{escape(line)}</div>" for line in said.splitlines())

    def _set(self) -> None:
        self._ask("setting limits", self._apply)

    def _apply(self) -> None:
        sizes = self._sizes()
        if not sizes:
            raise UsageError("no limit was typed: type one into a field, as 12GB or 75%")
        self._memory.set_limits(self._chosen(), **sizes)
        for each in self.fields.values():
            each.value = ""

    def _clear(self) -> None:
        self._ask("clearing the cache", self._cleared)

    def _cleared(self) -> None:
        given = self._memory.clear_cache(self._chosen())
        self.said.value = f"<div>{format_bytes(given)} were given back to the system</div>"

    def _reset(self) -> None:
        self._ask("resetting the peak", self._was_reset)

    def _was_reset(self) -> None:
        self._memory.reset_peak(self._chosen())
        self.said.value = "<div>the peak begins anew</div>"
