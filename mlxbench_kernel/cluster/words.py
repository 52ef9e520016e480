"""What a rank does, in words; from what it answers on the control channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAIT_SECONDS = 0.5  # of a collective, before it is spoken of


def doing(said: Mapping[str, Any]) -> str:
    """State of a rank: "idle", or "busy 12 s · line 3: mx.eval(loss)".

    Parameters
    ----------
    said
        From the call ``watch`` or ``sample``, see `ControlHandlers`.
    """
    if said["state"] == "idle":
        return "idle"
    where = f" · line {said['line']}: {said['source']}" if said["line"] else ""
    group = said["group"]
    asked = ""
    if _waits(group) and not group["certain"]:
        asked = f" · last asked for {group['running'][0]}, {group['waits']:.0f} s ago"
    return f"busy {said['seconds']:.0f} s{where}{asked}"


def waiting(said: Mapping[str, Any]) -> str:
    """The collective that a rank waits in: "waiting 5 s in all_sum of float32 [4]"; else ""."""
    group = said["group"]
    if not _waits(group) or not group["certain"]:
        return ""
    operation, peer, _ = group["running"]
    direction = "to" if operation == "send" else "from"
    what = operation if peer < 0 else f"{operation} {direction} rank {peer}"
    form = f" of {group['dtype']} {list(group['shape'])}" if "dtype" in group else ""
    line = f" · {group['line']}" if group.get("line") else ""
    return f"waiting {group['waits']:.0f} s in {what}{form}{line}"


def _waits(group: Mapping[str, Any] | None) -> bool:
    return group is not None and group["running"] is not None and group["waits"] > WAIT_SECONDS
