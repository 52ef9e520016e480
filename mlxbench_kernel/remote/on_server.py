"""Serves a rank's part of a language model for the notebook; this runs on the rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.interrupts import held
from mlxbench_kernel.remote.on_model import part_named

if TYPE_CHECKING:
    from mlxbench_kernel.models.serving import Served

_served: list[Served] = []  # one at most


def on_server(name: str, *arguments: Any) -> Any:
    """Do one of `CALLS`; what it returned."""
    return CALLS[name](*arguments)


def _open(name: str, model_id: str, port: int, options: dict[str, Any]) -> int:
    """Make the server; the port where it listens, on rank 0."""
    from mlxbench_kernel.models.serving import Served

    _close()
    served = Served(part_named(name), model_id, port, options)
    _served.append(served)
    return served.port


def _turn() -> str:
    """Answer requests, see `Served.turn`."""
    if not _served:
        raise UsageError("there is no server here any more: type lm.serve()")
    try:
        why = _served[0].turn()
    except BaseException:
        _close()  # again, where a second interrupt broke that off
        raise
    if why:
        _served.clear()
    return why


def _close() -> None:
    """Stop it, if there is one."""
    with held():
        for served in _served:
            served.close()
        _served.clear()


CALLS: dict[str, Callable[..., Any]] = {"open": _open, "turn": _turn, "close": _close}
