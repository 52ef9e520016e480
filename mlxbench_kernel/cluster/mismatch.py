"""Puts the collective logs of ranks side by side and finds where they first differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlxbench_kernel.errors import CollectiveMismatch

Entry = Mapping[str, Any]
Logs = Mapping[int, Sequence[Entry]]


def aligned(logs: Logs) -> list[dict[int, Entry]]:
    """The collectives of the whole group, one row for each.

    Parameters
    ----------
    logs
        By rank, from `Collectives.log`.

    Returns
    -------
    list of dict
        Entries by rank; a rank that has none at this place is left out.
    """
    rows: dict[tuple[int, int], dict[int, Entry]] = {}
    firsts = []
    for rank, log in logs.items():
        whole = [entry for entry in log if entry["peer"] < 0]
        firsts += [_place(entry) for entry in whole[:1]]
        for entry in whole:
            rows.setdefault(_place(entry), {})[rank] = entry
    # What one rank has forgotten already cannot be compared.
    first = max(firsts, default=(0, 0))
    return [rows[place] for place in sorted(rows) if place >= first]


def _place(entry: Entry) -> tuple[int, int]:
    return entry["link"], entry["turn"]


def agrees(row: Mapping[int, Entry]) -> bool:
    """Whether the ranks ask for the same."""
    return len({_form(entry) for entry in row.values()}) == 1


def find_mismatch(
    logs: Logs, blocked: Mapping[int, Any] | None = None
) -> CollectiveMismatch | None:
    """The first thing that ranks disagree on.

    Parameters
    ----------
    logs
        By rank, from `Collectives.log`.
    blocked
        What the ranks wait in, when that alone says that they never will agree.

    Returns
    -------
    CollectiveMismatch or None
        With a line for each rank.
    """
    last = max((log[-1]["link"] for log in logs.values() if log), default=0)
    for row in aligned(logs):
        now = all(entry["link"] == last for entry in row.values())
        if now and len(row) == len(logs) and not agrees(row):
            return _told(row)
    if (pair := _unequal_pair(logs)) is not None:
        return _told(pair)
    if blocked:
        last = {rank: _running(log, blocked[rank]) for rank, log in logs.items() if rank in blocked}
        return _told({rank: entry for rank, entry in last.items() if entry is not None})
    return None


def _form(entry: Entry) -> tuple[Any, ...]:
    return entry["operation"], tuple(entry["shape"]), entry["dtype"]


def _running(log: Sequence[Entry], turn: Any) -> Entry | None:
    wanted = tuple(turn)
    for entry in reversed(log):
        if (entry["operation"], entry["peer"], entry["turn"]) == wanted:
            return entry
    return None


def _unequal_pair(logs: Logs) -> dict[int, Entry] | None:
    """The first send that does not fit the receive it meets."""
    links = [log[-1]["link"] for log in logs.values() if log]
    last = max(links, default=0)
    sends, receives = {}, {}
    for rank, log in logs.items():
        for entry in log:
            if entry["link"] != last or entry["peer"] < 0:
                continue
            if entry["operation"] == "send":
                sends[rank, entry["peer"], entry["turn"]] = entry
            else:
                receives[entry["peer"], rank, entry["turn"]] = entry
    for key in sorted(sends.keys() & receives.keys(), key=lambda key: key[2]):
        sent, received = sends[key], receives[key]
        if _form(sent)[1:] != _form(received)[1:]:
            return {key[0]: sent, key[1]: received}
    return None


def _told(row: Mapping[int, Entry]) -> CollectiveMismatch:
    lines = [f"rank {rank}: {describe(entry)}" for rank, entry in sorted(row.items())]
    return CollectiveMismatch(
        "the ranks disagree on a collective, so what it gave is worthless: have all ranks call "
        "the same one, with one shape and dtype\n" + "\n".join(lines)
    )


def describe(entry: Entry) -> str:
    """One collective, in words."""
    peer = entry["peer"]
    whom = "" if peer < 0 else f" {'to' if entry['operation'] == 'send' else 'from'} rank {peer}"
    shape = ", ".join(map(str, entry["shape"]))
    line = f"  {entry['line']}" if entry["line"] else ""
    return f"{entry['operation']}{whom}  {entry['dtype']} [{shape}]{line}"
