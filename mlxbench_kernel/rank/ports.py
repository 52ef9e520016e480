"""Ports of a rank: reserved by asking the system, and tried from the neighbours' side.

``mx.distributed.init`` waits for its neighbours without a timeout, so every path it will
need is tried before. A reservation is a listening socket; it is closed just before MLX
binds the same port (MLX sets SO_REUSEADDR, ``mlx/distributed/utils.cpp``).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from typing import Any

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
        addresses.append(written(listener.getsockname()))
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
        try:
            socket.create_connection(read(address), timeout=timeout).close()
        except OSError as error:
            failed[address] = str(error)
    return failed


def listening(address: str) -> bool:
    """Whether this process listens at an address (``"ip:port"``)."""
    return any(listens and own == address for _, own, listens in _ends())


def socket_at(address: str) -> int | None:
    """The file descriptor of the socket of this process whose own end is at an address."""
    return next((fd for fd, own, _ in _ends() if own == address), None)


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


def open_sockets() -> set[tuple[int, int]]:
    """The sockets of this process: file descriptor and inode, as numbers are used again."""
    found = set()
    for fd in map(int, os.listdir("/dev/fd")):
        try:
            about = os.fstat(fd)
        except OSError:  # the folder was read through it
            continue
        if stat.S_ISSOCK(about.st_mode):
            found.add((fd, about.st_ino))
    return found


def _ends() -> Iterator[tuple[int, str, bool]]:
    """Of each socket of this process with an address: that, and whether it listens."""
    for fd, _ in open_sockets():
        try:
            with socket.socket(fileno=os.dup(fd)) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6):
                    listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    yield fd, written(copy.getsockname()), bool(listens)
        except OSError:  # closed meanwhile
            continue


def written(address: tuple[Any, ...]) -> str:
    """An address of a socket as ``"ip:port"``."""
    ip, port = address[:2]
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def read(address: str) -> tuple[str, int]:
    """IP address and port of ``"ip:port"``."""
    ip, port = address.rsplit(":", 1)
    return ip.strip("[]"), int(port)


def close_failed(before: set[tuple[int, int]]) -> None:
    """Close the sockets that MLX has made for attempts to connect that failed, and left open.

    It tries again with another one (``mlx/distributed/utils.cpp``, 0.32.4). What is closed is
    new, blocks, and has no address and no peer; ipyparallel's sockets do not block.

    Parameters
    ----------
    before
        What was open before MLX was called.
    """
    for fd, _ in open_sockets() - before:
        try:
            with socket.socket(fileno=os.dup(fd)) as copy:
                failed = (
                    copy.type == socket.SOCK_STREAM
                    and copy.family in (socket.AF_INET, socket.AF_INET6)
                    and os.get_blocking(fd)
                    and ipaddress.ip_address(copy.getsockname()[0]).is_unspecified
                    and not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                )
        except OSError:  # closed meanwhile
            continue
        if failed:
            os.close(fd)


def _port(address: str) -> int:
    return read(address)[1]


def release() -> None:
    """Give the reserved ports up."""
    while _reserved:
        _reserved.pop().close()
