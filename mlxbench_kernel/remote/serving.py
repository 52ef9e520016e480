"""`Server`: mlx-lm's server on the ranks of a model, which gives way to whatever else uses them.

While nobody uses the ranks, one hidden cell on all of them answers requests. What wants them, a
cell for one, has it end: on all ranks between the same two tokens. Requests that are not answered
yet go on afterwards.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import BenchError, GivenUp, UsageError
from mlxbench_kernel.remote.asking import Tell, ask_ranks
from mlxbench_kernel.remote.on_server import on_server

if TYPE_CHECKING:
    from mlxbench_kernel.remote.language_model import ModelOnRanks

LOOK_SECONDS = 2.0
STOP_SECONDS = 0.05  # from one request to pause to the next
ANSWER_SECONDS = 1.0
LATE_SECONDS = 2.0

STUCK = (
    "the server has a request that cannot pause (one with a seed, or with a draft model): it goes "
    "on to its end"
)


class Server:
    """A language model that other programs on rank 0's machine can use, as OpenAI's.

    Parameters
    ----------
    model
        Which.
    port
        Where to listen; 0 for one that is free.
    options
        See `mlxbench_kernel.models.answering.OPTIONS`.
    tell
        Is told who waits for what.

    Attributes
    ----------
    port : int
        Where it listens.
    name : str
        Of the model's variable on the ranks.
    model_id : str
        What requests call the model.
    host : str
        Name of rank 0's host.
    error : str
        Why it has ended by itself; "" where it has not.

    Raises
    ------
    UsageError
        The port is taken, there is no such option, or the ranks serve a model already.
    """

    def __init__(
        self,
        model: ModelOnRanks,
        port: int,
        options: dict[str, Any],
        tell: Tell = lambda text: None,
    ) -> None:
        background = model.cluster.background
        if background.server is not None:
            raise UsageError(f"these ranks serve already: {background.server}")
        if not isinstance(port, int) or not 0 <= port < 2**16:
            raise UsageError(f"port={port!r}: type a number up to 65535, or 0 for a free one")
        self._cluster, self._tell = model.cluster, tell
        self.name, self.model_id, self.error = model.name, model.path, ""
        self.host = self._cluster.info.ranks[0].host
        self._ranks = [0] if model.shard == "data" else model.ranks
        self._changed = threading.Condition()
        self._users = 0
        self._turning = self._stopped = False
        self._requests = 0
        self._looked = 0.0
        self._thread = threading.Thread(target=self._work, name="mlxbench-server", daemon=True)
        with self._cluster.between():
            try:
                self.port: int = self._ask("open", model.name, self.model_id, port, options)[0]
            except BaseException:
                self._close()
                raise
            background.server = self
            self._thread.start()

    @property
    def url(self) -> str:
        """Base URL for a client, on rank 0's host."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def running(self) -> bool:
        """Whether it takes requests."""
        return not self._stopped

    @property
    def requests(self) -> int:
        """How many came so far."""
        if not self._stopped:
            self._look()
        return self._requests

    def __repr__(self) -> str:
        if self.error:
            return f"<stopped: {self.error}>"
        requests = f"{self.requests} requests so far"
        if self._stopped:
            return f"<stopped; {requests}>"
        return "\n".join([f"{self.model_id} at {self.url}, {requests}", *self._how()])

    def _how(self) -> Iterator[str]:
        """What to type, to reach it and to try it."""
        host = self._cluster.info.hosts[0]
        if not host.is_local:
            forward = f"{self.port}:127.0.0.1:{self.port}"
            yield f"It is on {self.host}; to have it here: ssh -N -L {forward} {host.ssh}"
        body = {"model": "default_model", "messages": [{"role": "user", "content": "Hello"}]}
        yield (
            f"curl {self.url}/chat/completions -H 'Content-Type: application/json' "
            f"-d '{json.dumps(body)}'"
        )

    def stop(self) -> None:
        """Close the port; clients that wait get an error, and the model stays.

        Raises
        ------
        GivenUp
            A Ctrl-C came before it paused; it goes on.
        """
        if self._stopped:
            return
        self._look()
        with self.between():  # no turn begins in here
            with self._changed:
                if self._stopped:
                    return
                self._stopped = True
                self._changed.notify_all()
            try:
                self._close()
            finally:
                self._leave()

    def ended(self) -> None:
        """Its ranks were ended."""
        with self._changed:
            self._stopped = True
            self.error = f"its ranks were ended; {self.name}.serve() serves with others"
            self._changed.notify_all()
        self._leave()

    # -- turns -----------------------------------------------------------------------

    def is_own_thread(self) -> bool:
        """Whether this is the thread that has the ranks answer."""
        return threading.current_thread() is self._thread

    @contextmanager
    def between(self) -> Iterator[None]:
        """Have it pause while the block uses the ranks.

        Raises
        ------
        GivenUp
            A Ctrl-C came before it did; the block has not begun.
        """
        with self._changed:
            self._users += 1
        try:
            self._hold()
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _hold(self) -> None:
        started, said = time.monotonic(), False
        try:
            while self._turning:
                self._cluster.client.call("server_pause", [0], ANSWER_SECONDS)
                with self._changed:
                    self._changed.wait_for(lambda: not self._turning, STOP_SECONDS)
                is_main = threading.current_thread() is threading.main_thread()
                if not said and is_main and time.monotonic() - started > LATE_SECONDS:
                    said = True
                    self._tell(f"waiting: {STUCK}. %mlx_dist interrupt stops the server")
        except KeyboardInterrupt:
            raise GivenUp(
                f"nothing was run: {STUCK}. %mlx_dist interrupt stops the server"
            ) from None

    def _work(self) -> None:
        """Have the ranks answer while nobody else uses them."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or not self._users)
                if self._stopped:
                    return
                self._turning = True
            try:
                why = self._ask("turn")[0]
            except Exception as error:  # of the client that was closed under it, for one
                why = str(error) or type(error).__name__
                if not self._stopped:
                    with suppress(Exception):
                        self._close()
            finally:
                with self._changed:
                    self._turning = False
                    self._changed.notify_all()
            if why:
                self._end(why)

    def _end(self, why: str) -> None:
        """It has ended by itself."""
        first, *more = why.splitlines()
        if "%mlx_dist" not in first and ".serve()" not in first:
            gone = len(self._cluster.living()) < self._cluster.size
            heal = "%mlx_dist heal brings the rank back, then " if gone else ""
            first += f"; {heal}{self.name}.serve() starts it again"
        with self._changed:
            if self._stopped:  # on purpose, or with its ranks
                return
            self.error, self._stopped = "\n".join([first, *more]), True
        self._leave()

    def _ask(self, name: str, *arguments: Any) -> dict[int, Any]:
        return ask_ranks(
            self._cluster, self._ranks, self._tell, None, name, *arguments,
            of=on_server, show=self._look_now_and_then,
        )  # fmt: skip

    def _close(self) -> None:
        """Have the ranks that are there close it."""
        living = [rank for rank in self._ranks if rank in self._cluster.living()]
        if living:
            with suppress(BenchError):
                ask_ranks(
                    self._cluster, living, self._tell, None, "close", of=on_server, result=False
                )

    def _leave(self) -> None:
        if self._cluster.background.server is self:
            self._cluster.background.server = None

    # -- looking ---------------------------------------------------------------------

    def _look_now_and_then(self, status: str) -> None:
        """Called some times a second during a turn; the rank wants to know that we are there."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        with suppress(Exception):  # of a cluster that goes down meanwhile
            found = self._cluster.client.call("server", [0], ANSWER_SECONDS)
            self._requests = found.get(0, {}).get("requests", self._requests)


def stop_serving(cluster: Cluster, name: str) -> None:
    """Stop the server of the model that ranks have under this name, if there is one."""
    server = cluster.background.server
    if isinstance(server, Server) and server.name == name:
        server.stop()
