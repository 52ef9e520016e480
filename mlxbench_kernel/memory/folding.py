"""Holdings of ten thousand arrays, as far as a picture can show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlxbench_kernel.memory.holdings import NONE, Holdings

MOST = 2000
_COLUMNS = ("labels", "parents", "kinds", "own", "bytes", "shared", "host", "nodes", "types",
            "shapes")  # fmt: skip
_SUMS = ("own", "shared", "host", "nodes", "count")
_BUFFERS = ("held_by", "held", "buffer_bytes", "first", "second")


def folded(found: Holdings, most: int = MOST) -> Holdings:
    """Only the largest nodes; the others are one node for each kind, ``"… 123 more"``.

    All sums stay what they were. Buffers and who holds them are left out: what is shared with
    whom, and `freeable`, are to be asked of the whole.

    Parameters
    ----------
    found
        From `attribute`.
    most
        So many nodes at most, beside those that stand for others and those above the ones kept.

    Returns
    -------
    Holdings
        `found` itself where it has no more.
    """
    if len(found.labels) <= most:
        return found
    order = sorted(
        range(len(found.labels)),
        key=lambda node: -found.bytes[node] - found.host[node] - found.shared[node],
    )
    kept = set(order[:most])
    for node in reversed(range(len(found.labels))):
        if node in kept and found.parents[node] >= 0:
            kept.add(found.parents[node])
    rows: list[dict[str, Any]] = []
    new = {NONE: NONE}
    above = {NONE: NONE}  # the nearest one that is kept
    rest: dict[tuple[int, str], dict[str, Any]] = {}
    for node, parent in enumerate(found.parents):
        row = {name: getattr(found, name)[node] for name in _COLUMNS}
        if node in kept:
            above[node], new[node] = node, len(rows)
            rows.append(row | {"parents": new[parent]})
            continue
        above[node] = above[parent]
        others = rest.setdefault((above[parent], row["kinds"]), dict.fromkeys(_SUMS, 0))
        others["own"] += row["own"]
        others["count"] += row["shapes"] is not None
        if parent in new:  # with all that is below it
            for name in ("shared", "host", "nodes"):
                others[name] += row[name]
    for (parent, kind), others in rest.items():
        count = others.pop("count")
        if others["own"] or count:
            rows.append(others | {
                "labels": f"… {count:,} more", "parents": new[parent], "kinds": kind,
                "bytes": others["own"], "types": "", "shapes": None,
            })  # fmt: skip
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in _COLUMNS}
    same = [[new[one], new[other]] for one, other in found.same if one in new and other in new]
    nothing: dict[str, Any] = {name: [] for name in _BUFFERS}
    return replace(found, same=same, **columns, **nothing)
