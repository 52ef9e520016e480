"""What a process answers about its memory, on any thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import limits
from mlxbench_kernel.memory.attribution import attribute
from mlxbench_kernel.memory.looks import Looks
from mlxbench_kernel.memory.pools import pools
from mlxbench_kernel.memory.record import RECORD


class MemoryAnswers:
    """The answers of one process, in what JSON can hold.

    Parameters
    ----------
    namespace, hidden
        The user's variables, and the names among them that the user did not make.

    Attributes
    ----------
    calls : dict
        The functions by the names of the calls: ``memory`` (`Record.tell`), ``memory_mark``
        (`Record.mark`), ``memory_busy`` (`Record.is_in_cell`), ``memory_limits``,
        ``memory_said``, ``memory_holdings``, ``memory_looks`` and ``memory_look``.
    """

    def __init__(self, namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> None:
        self._namespace, self._hidden = namespace, hidden
        self.looks = Looks(namespace, hidden, RECORD)
        self.calls: dict[str, Callable[..., Any]] = {
            "memory": RECORD.tell,
            "memory_mark": RECORD.mark,
            "memory_limits": self.limits,
            "memory_said": self.said,
            "memory_busy": lambda: RECORD.is_in_cell,
            "memory_holdings": self.holdings,
            "memory_looks": self.looks.names,
            "memory_look": self.looks.find,
        }

    def limits(self) -> dict[str, Any]:
        """The fields of `Limits`, ``cap`` (`Pool.cap`), ``allocator`` (`limits.allocator`) and of
        ``pools``, which they are limits in, each `Pool.key`."""
        found = pools()
        return {
            **vars(limits.current()),
            "cap": next((each.cap for each in found if each.cap is not None), None),
            "allocator": limits.allocator(),
            "pools": [each.key for each in found],
        }

    def said(self, sizes: Mapping[str, int | str]) -> dict[str, str]:
        """``said``: what these limits would do (`limits.said_beforehand`), or ``error``."""
        try:
            return {"said": limits.said_beforehand(**sizes)}
        except UsageError as error:
            return {"error": str(error)}

    def holdings(self) -> dict[str, Any]:
        """`attribute` without graphs, which a cell may be evaluating."""
        return attribute(self._namespace, self._hidden, graphs=False).to_dict()
