"""What a rank does about its memory for the notebook, where its cells run; this runs there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxbench_kernel.memory import attribute, limits


def on_memory(name: str, *arguments: Any) -> Any:
    """Do one of ``holdings`` (`attribute`), ``set_limits``, ``clear_cache`` and ``reset_peak``
    (`memory.limits`); what it returned."""
    return _CALLS[name](*arguments)


def _set_limits(sizes: dict[str, int | str]) -> dict[str, int | None]:
    return dict(vars(limits.apply(**sizes)))


def _holdings() -> dict[str, Any]:
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    return attribute(shell.user_ns, shell.user_ns_hidden).to_dict()


_CALLS: dict[str, Callable[..., Any]] = {
    "holdings": _holdings,
    "set_limits": _set_limits,
    "clear_cache": limits.clear_cache,
    "reset_peak": limits.reset_peak,
}
