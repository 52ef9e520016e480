"""How long ranks stay that nobody tells to leave; `mlxbench_kernel.rank.lifetime` does it."""

from __future__ import annotations

import os
from typing import Any

from mlxbench_kernel.cluster.state import process_started

SILENCE_SECONDS = 600.0  # of the controller, as a rank on another host hears it
KEPT_SILENCE_SECONDS = 7 * 86400.0  # with --keep


def arguments(plan: dict[str, Any], keep: bool) -> list[str]:
    """Command line of a rank that says how long it stays.

    Parameters
    ----------
    plan
        Its plan, see `Machinery.create`.
    keep
        Whether it outlives this process.
    """
    if keep:
        return [f"--RankEngine.silence={KEPT_SILENCE_SECONDS}"]
    if plan["ssh"]:
        return [f"--RankEngine.silence={SILENCE_SECONDS}"]
    return [
        f"--RankEngine.owner={os.getpid()}",
        f"--RankEngine.owner_started={process_started()}",
    ]


def patience(keep: bool) -> str:
    """How long a rank stays that hears nothing any more, for a message."""
    return f"{KEPT_SILENCE_SECONDS / 86400:.0f} days" if keep else f"{SILENCE_SECONDS / 60:.0f} min"
