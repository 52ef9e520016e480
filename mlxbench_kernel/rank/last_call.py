"""Has the last rank of a ring listen before it calls the first.

MLX's last rank connects to rank 0, and listens only then (``mlx/distributed/ring/ring.cpp``).
Rank 0 may call it before that, and MLX tries again after a second. So MLX is given a listener of
this process to connect to; when it listens itself, the connection is replaced by one to rank 0.
"""

from __future__ import annotations

import os
import socket
import threading
from types import TracebackType
from typing import Self

from mlxbench_kernel.rank import ports

POLL_SECONDS = 0.001  # that MLX listens appears in no event
RETRY_SECONDS = 0.05


class LastCall:
    """Stands between ``init`` of the last rank and the first rank; a context manager.

    Parameters
    ----------
    own, first
        ``"ip:port"`` that this rank listens on, and that of rank 0.

    Attributes
    ----------
    address : str
        What MLX is to connect to instead of `first`.
    """

    def __init__(self, own: str, first: str) -> None:
        self._own = own
        self._first = first
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self.address = ports.written(self._listener.getsockname())
        self._thread = threading.Thread(target=self._run, name="mlxbench-last-call", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        try:
            held, caller = self._listener.accept()
        except OSError:  # it ended before it called
            return
        with held:
            while not ports.listening(self._own):
                if self._over.wait(POLL_SECONDS):
                    return
            found = ports.socket_at(ports.written(caller))
            call = self._call()
            if call is not None and found is not None:
                with call:
                    os.dup2(call.fileno(), found, inheritable=False)

    def _call(self) -> socket.socket | None:
        """A connection to rank 0; None when it is wanted no longer."""
        while True:
            try:
                return socket.create_connection(ports.read(self._first))
            except OSError:
                if self._over.wait(RETRY_SECONDS):
                    return None
