"""The collective logs of ranks, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlxbench_kernel.widgets.table import Table

DIFFERS = "≠"


class CollectivesTable(Table):
    """One line per collective, one column per rank; the first difference is marked.

    Parameters
    ----------
    logs
        By rank, from `Cluster.collectives`.
    most
        Lines at most: the last ones, or those around the first difference.
    """

    def __init__(self, logs: Mapping[int, Sequence[Mapping[str, Any]]], most: int) -> None:
        from mlxbench_kernel.cluster.mismatch import agrees, aligned, describe

        rows = aligned(logs)
        ranks = sorted(logs)
        wrong = [index for index, row in enumerate(rows) if not agrees(row)]
        links = [next(iter(rows[index].values()))["link"] for index in wrong]
        differing = wrong[links.index(links[-1])] if wrong else None  # in the last group with one
        end = len(rows) if differing is None else min(len(rows), differing + most // 2 + 1)
        begin = max(0, end - most)
        texts = [
            [
                DIFFERS if index == differing else "",
                str(rows[index][min(rows[index])]["turn"]),
                *(_cell(rows[index].get(rank)) for rank in ranks),
            ]
            for index in range(begin, end)
        ]
        pairwise = [
            ["", "", *(describe(entry) + _state(entry) if rank == each else "" for each in ranks)]
            for rank in ranks
            for entry in [entry for entry in logs[rank] if entry["peer"] >= 0][-3:]
        ]
        caption = f"the last {len(rows)} collectives of the whole group"
        if begin or end < len(rows):
            caption += f", {end - begin} of them shown"
        if differing is not None:
            caption += f"; {DIFFERS} marks the first on which the ranks disagreed"
        header = ["", "#", *(f"rank {rank}" for rank in ranks)]
        super().__init__(header, texts + pairwise, caption)


def _cell(entry: Mapping[str, Any] | None) -> str:
    from mlxbench_kernel.cluster.mismatch import describe

    return "–" if entry is None else describe(entry) + _state(entry)


def _state(entry: Mapping[str, Any]) -> str:
    if entry["done"] > 0:
        return f"  {1000 * (entry['done'] - entry['begun']):.1f} ms"
    if entry["done"] < 0:
        return ""
    return "  not begun" if not entry["begun"] else "  waiting"
