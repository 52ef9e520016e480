"""After collectives were broken off: the group anew, and no value that is silently wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.forming import Forming
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.rank import recovering

ANSWER_SECONDS = 2.0
FORM_SECONDS = 20.0


def recover(
    client: BenchClient,
    hosts: Sequence[Host],
    backend: str,
    reason: str,
    living: Sequence[int],
    renew: bool,
) -> list[str]:
    """Make the group anew on idle ranks, put protected state back, refuse what may be wrong.

    Parameters
    ----------
    client
        Client of the cluster.
    hosts
        One per rank.
    backend
        Of the group.
    reason
        What happened, for messages.
    living
        The ranks that are there.
    renew
        Whether the group can be made anew; else only the state is seen to.

    Returns
    -------
    list of str
        What was done, in words, one line each.

    Raises
    ------
    ClusterError
        The group could not be made.
    """
    start = time.monotonic()
    counts = client.call("protected", living, ANSWER_SECONDS)
    count = common(counts)
    forming = Forming(client, hosts, backend, FORM_SECONDS)
    said = []
    if renew:
        found = forming.form([(recovering.rejoin_and_mend, (count,))] * len(hosts))
        number_link(client, range(len(hosts)))
        said.append(f"the group was made anew in {time.monotonic() - start:.1f} s")
    else:
        found = on(client, living, recovering.mend, count)
    return said + outcome(found, refuse(client, living, found, reason))


def refuse(
    client: BenchClient, ranks: Sequence[int], found: Sequence[Mapping[str, Any]], reason: str
) -> list[str]:
    """Have names refused that may be half changed on a rank: on all, for they have to stay equal.

    Parameters
    ----------
    client, ranks
        Where.
    found
        From `recovering.mend`.
    reason
        What happened, for messages.

    Returns
    -------
    list of str
        These names.
    """
    names = sorted({name for each in found for name in each["incomplete"]})
    if names:
        on(client, ranks, recovering.refuse, names, reason)
    return names


def number_link(client: BenchClient, ranks: Sequence[int]) -> None:
    """Have ranks number their new connections alike: what is compared is told apart by it."""
    links = {group["link"] for group in client.groups(ranks).values()}
    if len(links) > 1:
        client.call("number_link", ranks, ANSWER_SECONDS, link=max(links))


def on(
    client: BenchClient, ranks: Sequence[int], function: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """Call a function on ranks at once; what it returns."""
    calls = [client.on(rank).apply_async(function, *arguments) for rank in ranks]
    return [call.get(FORM_SECONDS) for call in calls]


def common(counts: Mapping[int, Sequence[int]]) -> int | None:
    """The last completed evaluation that all ranks have kept; None without one."""
    shared = set.intersection(*(set(each) for each in counts.values())) if counts else set()
    return max(shared, default=None)


def outcome(found: Sequence[Mapping[str, Any]], refused: Sequence[str]) -> list[str]:
    """What ranks have put back and refuse, in words.

    Parameters
    ----------
    found
        From `recovering.mend`.
    refused
        Names.
    """
    said = []
    restored = sorted({name for each in found for name in each["restored"]})
    if restored:
        step = next((each["step"] for each in found if each["step"] is not None), None)
        where = "their last completed values" if step is None else f"step {step}"
        said.append(f"{', '.join(restored)}: back at {where} on all ranks")
    if refused:
        said.append(
            f"refused until assigned again, because they may be half changed: {', '.join(refused)}"
            + ("" if restored else "; protect(model=model, optimizer=optimizer) keeps such names")
        )
    return said
