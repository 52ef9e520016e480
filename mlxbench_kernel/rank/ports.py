"""Ports of a rank: reserved by asking the system, and tried from the neighbours' side.

``mx.distributed.init`` waits for its neighbours without a timeout, so every path it will
need is tried before. A reservation is a listening socket; it is closed just before MLX
binds the same port (MLX sets SO_REUSEADDR, ``mlx/distributed/utils.cpp``).
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence

_reserved: list[socket.socket] = []


def reserve(ips: list[str]) -> list[str]:
    """Listen on a free port of each address.

    Parameters
    ----------
    ips
        Addresses of this host, as in the hostfile.

    Returns
    -------
    list of str
        ``"ip:port"`` for each, in the same order.

    Raises
    ------
    OSError
        An address is not one of this host's.
    """
    release()
    addresses = []
    for ip in ips:
        family = socket.AF_INET6 if ipaddress.ip_address(ip).version == 6 else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        _reserved.append(listener)
        try:
            listener.bind((ip, 0))
        except OSError as error:
            release()
            raise OSError(f"{ip} is not an address of {socket.gethostname()} ({error})") from None
        listener.listen(16)
        port = listener.getsockname()[1]
        addresses.append(f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}")
    return addresses


def unreachable(addresses: list[str], timeout: float) -> dict[str, str]:
    """Try to connect to each address.

    Parameters
    ----------
    addresses
        ``"ip:port"`` of reservations on other ranks.
    timeout
        Seconds to wait for each.

    Returns
    -------
    dict
        The addresses that could not be reached, with the reason.
    """
    failed = {}
    for address in addresses:
        ip, port = address.rsplit(":", 1)
        try:
            socket.create_connection((ip.strip("[]"), int(port)), timeout=timeout).close()
        except OSError as error:
            failed[address] = str(error)
    return failed


def listening(address: str) -> bool:
    """Whether this process listens on the port of an address (``"ip:port"``)."""
    import psutil

    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == _port(address)
        for connection in psutil.Process().net_connections("tcp")
    )


def connections(own: Sequence[str], others: Sequence[str]) -> list[int]:
    """The sockets of this process that belong to these ports.

    Parameters
    ----------
    own
        Addresses (``"ip:port"``) at which this process listened.
    others
        Addresses that it connected to.

    Returns
    -------
    list of int
        Duplicates of their file descriptors, which are the caller's to close.
    """
    import psutil

    listened, called = {_port(each) for each in own}, {_port(each) for each in others}
    found = []
    for each in psutil.Process().net_connections("tcp"):
        if each.laddr.port in listened or (each.raddr and each.raddr.port in called):
            try:
                found.append(os.dup(each.fd))
            except OSError:  # closed meanwhile
                pass
    return found


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def release() -> None:
    """Give the reserved ports up."""
    while _reserved:
        _reserved.pop().close()
