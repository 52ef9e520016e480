"""The HTTP side of a model's server: mlx-lm's handler, on this machine's loopback."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any

from mlx_lm.server import APIHandler, CompletionRequest, get_system_fingerprint

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.answering import Answering

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost", "[::1]")  # that a request may call this machine
LAST_SECONDS = 0.5  # for answers that are on their way, when the server stops
POLL_SECONDS = 0.05


class Handler(APIHandler):
    """mlx-lm's, which lists the one model that is there, and writes no log."""

    def parse_request(self) -> bool:
        """mlx-lm's; refuses a request for another host's name.

        A page in a browser on this machine can have its own name lead to the loopback, and then
        what ``allowed_origins`` says does not keep it out.
        """
        if not super().parse_request():
            return False
        name = self.headers.get("Host", LOOPBACK)
        if name.rpartition(":")[0] not in NAMES and name not in NAMES:
            self.send_error(403, f"this server is {LOOPBACK}, not {name}")
            return False
        return True

    def handle_models_request(self) -> None:
        """mlx-lm lists what is in the cache of the hub, of which nothing can be asked here."""
        answering: Any = self.response_generator
        listed = {
            "id": answering.model_id, "object": "model", "created": self.created,
            "owned_by": "mlxbench",
        }  # fmt: skip
        self._set_completion_headers(200)
        self.end_headers()
        self.wfile.write(json.dumps({"object": "list", "data": [listed]}).encode())

    def handle_completion(self, request: CompletionRequest, stop_words: list[str]) -> None:
        """mlx-lm's; where it breaks off, a client is told, and does not take that for the end."""
        try:
            super().handle_completion(request, stop_words)
        except RuntimeError:
            answering: Any = self.response_generator
            why = answering.turns.error or "it was stopped"
            said = {"error": {"message": f"the server has ended: {why}", "type": "server_error"}}
            if self.stream:
                self.wfile.write(f"data: {json.dumps(said)}\n\n".encode())
                return
            self._headers_buffer: list[bytes] = []  # of an answer that will not come
            self._set_completion_headers(503)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

    def log_message(self, format: str, *values: Any) -> None:
        """It would come out below whatever cell runs."""


class Door(ThreadingHTTPServer):
    """Listens on this machine's loopback, and hands requests on.

    Parameters
    ----------
    answering
        Answers.
    port
        Where to listen; 0 for one that is free.

    Raises
    ------
    UsageError
        The port is taken.
    """

    daemon_threads = False  # so that closing waits for them

    def __init__(self, answering: Answering, port: int) -> None:
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        made = partial(Handler, answering, system_fingerprint=get_system_fingerprint())
        try:
            super().__init__((LOOPBACK, port), made)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"port {port} of {socket.gethostname()} cannot be used ({reason}): type "
                "lm.serve() for one that is free"
            ) from None
        self._thread = threading.Thread(
            target=self.serve_forever, args=(POLL_SECONDS,), name="mlxbench-http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Without looking up a name for the address, which takes seconds on some hosts."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.port

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error, and one whose answer broke off has noticed."""

    def close(self) -> None:
        """Take no more requests, let the last ones end, and close the port."""
        self.shutdown()
        self._thread.join()
        self.socket.close()
        deadline = time.monotonic() + LAST_SECONDS
        with self._changed:
            while self._open and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            late = list(self._open)
        for each in late:  # of a client that sends nothing, or reads nothing
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed
        self.server_close()
