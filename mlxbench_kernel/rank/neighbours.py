"""Who is really at the other end of a rank's ring, and how to let go of a wrong one.

MLX's ring is plain TCP without a greeting: a rank accepts whoever connects first
(``mlx/distributed/ring/ring.cpp``), and then waits for the neighbour's bytes from a stranger.
So every rank tells which connections its ring has, and the notebook's side compares: what
rank r accepted has to be what the rank before it has opened (`mlxbench_kernel.cluster.ring`).

`links` and `let_go` are called on the control thread, also while ``init`` blocks; the others where
cells run.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from typing import Any

from mlxbench_kernel.rank import ports

BACKLOG = 128  # that a listener has by default
_standing_in: dict[str, socket.socket] = {}
_left: set[str] = set()


def links(own: Sequence[str], right: Sequence[str]) -> dict[str, list[Any]]:
    """The connections of this process's ring.

    Parameters
    ----------
    own, right
        ``"ip:port"`` that this rank listens on, and those of the rank that it connects to.

    Returns
    -------
    dict
        ``listening``: those of its own addresses on which it waits for somebody; ``accepted``
        and ``opened``: for each connection ``[listener's end, other end]``; all ``"ip:port"``.
    """
    import psutil

    found: dict[str, list[Any]] = {"listening": [], "accepted": [], "opened": []}
    for connection in psutil.Process().net_connections("tcp"):
        here, there = _end(connection.laddr), _end(connection.raddr)
        if here in own and connection.status == psutil.CONN_LISTEN:
            found["listening"].append(here)
        elif here in own:
            found["accepted"].append([here, there])
        elif there in right:
            found["opened"].append([there, here])
    return found


def let_go(own: Sequence[str], right: Sequence[str]) -> None:
    """Bring this process out of an ``init`` or a collective that waits in a wrong ring.

    Called again and again until it is out: ``init`` may go on to another wait. What is connected
    is shut. Where MLX waits for somebody to connect, this rank connects itself; where it
    listens no longer, somebody stands in for it, else the rank before it would go on trying for
    31 s (``mlx/distributed/utils.cpp``).
    """
    import psutil

    if _left.issuperset(own):  # asked late
        return
    listening = set()
    for connection in psutil.Process().net_connections("tcp"):
        here, there = _end(connection.laddr), _end(connection.raddr)
        if connection.status == psutil.CONN_LISTEN:
            listening.add(here)
        elif here in own or there in right:
            _shut(connection.fd)
    for address in own:
        if address in _standing_in:
            _hang_up(_standing_in[address])
        elif address in listening:
            _knock(address)
        else:
            _stand_in(address)


def is_out() -> None:
    """Where cells run, and so answered only when ``init`` or the collective has ended."""


def start_over(own: Sequence[str]) -> None:
    """Forget the group, so that ``init`` can be called again, with other addresses than `own`.

    Raises
    ------
    RuntimeError
        There is no native module, without which MLX keeps its first group for ever.
    """
    from mlxbench_kernel import native

    module = native.load()
    if module is None:
        raise RuntimeError(f"a second try needs the native module ({native.reason()})")
    _left.update(own)
    while _standing_in:
        _standing_in.popitem()[1].close()
    module.forget_backends()


def prove(rank: int, size: int) -> bool:
    """Whether numbers go round the ring and come back as they should."""
    import mlx.core as mx

    from mlxbench_kernel.rank.collectives import GROUP

    mine = mx.array([rank + 1, 1], dtype=mx.int32)
    try:
        group = GROUP.site("mlxbench tries the ring")
        total: Any = GROUP.original("all_sum")(mine, group=group, stream=mx.cpu).tolist()
    except RuntimeError:  # a stranger hung up
        return False
    return bool(total == [size * (size + 1) // 2, size])


def _end(address: Any) -> str:
    """An address of psutil as `ports.reserve` writes it, "" for none."""
    if not address:
        return ""
    ip = ipaddress.ip_address(address.ip.split("%")[0])
    return f"[{ip}]:{address.port}" if ip.version == 6 else f"{ip}:{address.port}"


def _shut(fd: int) -> None:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:  # MLX closes its own
            copy.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        pass


def _knock(address: str) -> None:
    try:
        socket.create_connection(ports.read(address), timeout=1.0).close()
    except OSError:  # it listens no longer
        pass


def _stand_in(address: str) -> None:
    family = socket.AF_INET6 if address.startswith("[") else socket.AF_INET
    try:
        listener = socket.create_server(ports.read(address), family=family)
    except OSError:  # MLX was faster
        return
    listener.setblocking(False)
    _standing_in[address] = listener


def _hang_up(listener: socket.socket) -> None:
    """On all who wait; else strangers could take up the room that the neighbour needs."""
    for _ in range(BACKLOG):
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return
