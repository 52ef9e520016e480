"""What MLX leaves open when it cannot connect at once."""

from __future__ import annotations

import os
import socket

import pytest

from mlxbench_kernel.rank import ports


def test_only_sockets_of_failed_attempts_are_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()
        before = ports.open_sockets()
    failed = socket.socket()  # under the number of the one that was closed
    assert failed.connect_ex(nobody) != 0
    everywhere, unblocking = socket.create_server(("", 0)), socket.socket()
    unblocking.setblocking(False)
    calling = socket.create_connection(everywhere.getsockname())
    ports.close_failed(before)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(failed.detach())
    for each in (everywhere, unblocking, calling):
        os.fstat(each.fileno())
        each.close()
