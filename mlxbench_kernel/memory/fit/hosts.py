"""The hosts of a plan: what is free on each, and which ranks share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.units import parse_bytes

_EXAMPLES = 'a number of ranks on this host, ["64GB", "16GB"] or {"studio": "64GB", "mini": "16GB"}'


@runtime_checkable
class KnowsFreeMemory(Protocol):
    """What can be given for hosts beside plain values: a cluster, say."""

    def free_memory(self) -> Mapping[str, Any]:
        """What is free on each host, as `read_hosts` takes a mapping."""


@dataclass(frozen=True)
class Host:
    """A pool of memory that one or more ranks draw from.

    Attributes
    ----------
    name
        What the user calls it.
    free
        Bytes.
    ranks
        Their numbers.
    """

    name: str
    free: int
    ranks: tuple[int, ...]


def read_hosts(hosts: Any) -> tuple[Host, ...]:
    """The hosts as a user writes them, ranks numbered in their order.

    Parameters
    ----------
    hosts
        A number of ranks on this host; a list of what is free (bytes or ``"64GB"``), or of
        ``(name, free)`` or ``(name, free, ranks)``; a mapping of names to what is free, or to
        ``(free, ranks)``; or an object with a method ``free_memory()`` that gives such a mapping.

    Raises
    ------
    UsageError
        There are none, or one cannot be read.
    """
    if isinstance(hosts, KnowsFreeMemory):
        hosts = hosts.free_memory()
    if isinstance(hosts, int) and not isinstance(hosts, bool):
        listed = [("this host", _free_here(), hosts)] if hosts else []
    elif isinstance(hosts, Mapping):
        listed = [(str(name), *_pair(name, value)) for name, value in hosts.items()]
    elif isinstance(hosts, Iterable) and not isinstance(hosts, str):
        listed = [_listed(number, value) for number, value in enumerate(hosts)]
    else:
        raise UsageError(f"FitPlan: {hosts!r} are no hosts: give {_EXAMPLES}")
    if not listed:
        raise UsageError(f"FitPlan: there are no hosts: give {_EXAMPLES}")
    found: list[Host] = []
    rank = 0
    for name, free, count in listed:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"FitPlan: {name} has {count!r} ranks: give 1 or more")
        if name in {host.name for host in found}:
            raise UsageError(
                f"FitPlan: {name} stands there twice: for two ranks that share its memory give "
                f"[({name!r}, {free}, 2)]"
            )
        found.append(Host(name, free, tuple(range(rank, rank + count))))
        rank += count
    return tuple(found)


def _listed(number: int, value: Any) -> tuple[str, int, int]:
    if isinstance(value, (int, str)):
        return f"host {number}", _bytes(f"host {number}", value), 1
    if isinstance(value, (tuple, list)) and len(value) in (2, 3) and isinstance(value[0], str):
        return (value[0], *_pair(value[0], value[1] if len(value) == 2 else value[1:]))
    raise UsageError(f"FitPlan: {value!r} is no host: give {_EXAMPLES}")


def _pair(name: Any, value: Any) -> tuple[int, int]:
    """What is free, and the number of ranks."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise UsageError(f"FitPlan: {name}: {value!r} is not (free, ranks), as ('64GB', 2)")
        return _bytes(name, value[0]), value[1]
    return _bytes(name, value), 1


def _bytes(name: Any, value: Any) -> int:
    try:
        return parse_bytes(value)
    except UsageError as error:
        raise UsageError(f"FitPlan: what is free on {name}: {error}") from None


def _free_here() -> int:
    """Bytes that new arrays can have here: of the pool, and under Metal's cap."""
    import mlx.core as mx

    from mlxbench_kernel.memory.pools import pools

    pool = pools()[0]
    if pool.cap is None:
        return pool.available
    return max(0, min(pool.available, pool.cap - mx.get_active_memory()))
