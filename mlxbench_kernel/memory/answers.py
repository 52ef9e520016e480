"""What a process answers about its memory, on any thread; by the name of the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import limits
from mlxbench_kernel.memory.attribution import attribute
from mlxbench_kernel.memory.pools import pools
from mlxbench_kernel.memory.record import RECORD


def answers(
    namespace: Mapping[str, Any], hidden: Mapping[str, Any]
) -> dict[str, Callable[..., Any]]:
    """The calls, each of which gives what JSON can hold.

    Parameters
    ----------
    namespace, hidden
        The user's variables, and the names among them that the user did not make.

    Returns
    -------
    dict
        ``memory`` (`Record.tell`), ``memory_mark`` (`Record.mark`), ``memory_limits``
        (`limits_of_now`), ``memory_said`` (`said_of_limits`) and ``memory_holdings`` (`attribute`
        without graphs, which a cell may be evaluating).
    """

    def holdings() -> dict[str, Any]:
        return attribute(namespace, hidden, graphs=False).to_dict()

    return {
        "memory": RECORD.tell,
        "memory_mark": RECORD.mark,
        "memory_limits": limits_of_now,
        "memory_said": said_of_limits,
        "memory_holdings": holdings,
    }


def limits_of_now() -> dict[str, Any]:
    """The fields of `Limits`, ``cap`` (`Pool.cap`) and ``allocator`` (`limits.allocator`)."""
    caps = [each.cap for each in pools()]
    cap = next((each for each in caps if each is not None), None)
    return {**vars(limits.current()), "cap": cap, "allocator": limits.allocator()}


def said_of_limits(sizes: Mapping[str, int | str]) -> dict[str, str]:
    """``said``: what setting these limits would do (`limits.said_beforehand`), or ``error``."""
    try:
        return {"said": limits.said_beforehand(**sizes)}
    except UsageError as error:
        return {"error": str(error)}
