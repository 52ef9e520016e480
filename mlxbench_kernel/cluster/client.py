"""The ipyparallel client, with cell output routed as it arrives and control calls.

ipyparallel gathers a cell's output itself: it keeps the whole text of every stream and
copies it at each message, which a million lines turn into hours. Messages of cells that
were started here go to their listener instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any

import ipyparallel
from ipyparallel.client.client import MessageFuture

from mlxbench_kernel.rank.history import OUTPUT, SENT
from mlxbench_kernel.rank.requests import MEMORY, META, REQUEST

Listener = Callable[[int, dict[str, Any]], None]
Hearer = Callable[[dict[str, Any]], None]


class BenchClient(ipyparallel.Client):  # type: ignore[misc]
    """Client of one cluster; rank r is engine r, until ranks were dropped.

    Attributes
    ----------
    engines : list of int
        The engine id of each rank, where ranks were dropped; else empty.
    ended : set of int
        Engines whose processes have ended, whatever the controller remembers of them.
    """

    _hearers: tuple[Hearer, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_listeners"] = {}
        self.__dict__["engines"] = []
        self.__dict__["ended"] = set()
        self.__dict__["_unanswered"] = {}
        self.__dict__["_hearers"] = ()
        super().__init__(*args, **kwargs)

    def engine(self, rank: int) -> int:
        """The engine id of a rank."""
        return int(self.engines[rank]) if self.engines else rank

    def on(self, rank: int) -> Any:
        """ipyparallel's view of a rank."""
        return self[self.engine(rank)]

    @property
    def ids(self) -> list[int]:
        """Engines that are there; a new controller remembers those that have ended meanwhile."""
        return [engine for engine in super().ids if engine not in self.ended]

    def living(self) -> set[int]:
        """The ranks whose processes are there, as far as the controller knows."""
        ids: set[int] = set(self.ids)
        if not self.engines:
            return ids
        return {rank for rank, engine in enumerate(self.engines) if engine in ids}

    def _identity(self, rank: int) -> bytes:
        identity: bytes = self._build_targets(self.engine(rank))[0][0]
        return identity

    def _dispatch_iopub(self, parts: list[Any]) -> None:
        message = self._unpack(parts)
        if message is None:
            return
        kind = message["header"]["msg_type"]
        if kind == MEMORY:
            for hearer in self._hearers:
                hearer(message["content"])
            return
        found = self._listeners.get(message["parent_header"].get("msg_id"))
        if found is not None and kind in OUTPUT:
            rank, listener = found
            self._unanswered.pop(rank, None)
            listener(rank, message)
        else:
            super()._dispatch_iopub.__wrapped__(self, message)

    def _dispatch_notification(self, parts: list[Any]) -> None:
        message = self._unpack(parts)
        if message is not None:
            super()._dispatch_notification.__wrapped__(self, message)

    def hear(self, hearer: Hearer) -> Callable[[], None]:
        """Have a function called with what ranks send of their memory (`memory.pushing`).

        Parameters
        ----------
        hearer
            Called with the content of each message on the client's IO thread, which it must
            not hold up, and must raise nothing.

        Returns
        -------
        function
            Ends it.
        """
        self._hearers = (*self._hearers, hearer)

        def end() -> None:
            self._hearers = tuple(each for each in self._hearers if each is not hearer)

        return end

    def _unpack(self, parts: list[Any]) -> dict[str, Any] | None:
        """A message that is signed as it should be; None for anything else.

        Whoever may connect on this machine may publish. ipyparallel would raise in the stream's
        callback, and the stream then stops until something else comes.
        """
        try:
            _, parts = self.session.feed_identities(parts, copy=False)
            message: dict[str, Any] = self.session.deserialize(parts, content=True, copy=False)
        except Exception:  # what is broken, and how, is a stranger's choice
            return None
        return message

    def start_cells(
        self,
        code: str,
        ranks: Sequence[int],
        listener: Listener,
        about: Mapping[str, Any] | None = None,
    ) -> dict[int, MessageFuture]:
        """Send a cell to ranks.

        All of it happens on the IO thread, to which the GIL would otherwise go and come back
        once for each rank.

        Parameters
        ----------
        code
            Source of the cell.
        ranks
            Where it runs.
        listener
            Called with the rank and each message that is to be displayed, on the client's
            IO thread; also for output that comes after the cell has ended.
        about
            What the ranks have to know of the cell, see `mlxbench_kernel.rank.cells`.

        Returns
        -------
        dict of MessageFuture
            By rank; done when the cell has ended, its ``output`` when all output arrived.
        """
        identities = {rank: self._identity(rank) for rank in ranks}
        started: Future[dict[int, MessageFuture]] = Future()
        sent = {SENT: time.time()}

        def start() -> None:
            try:
                started.set_result(
                    {
                        rank: self.send_execute_request(
                            self._mux_stream,  # a bare socket would swallow its stream's events
                            code,
                            silent=False,
                            metadata={META: dict(about or {}), **sent},
                            ident=identity,
                            message_future_hook=partial(self._listen, rank, listener),
                        )
                        for rank, identity in identities.items()
                    }
                )
            except Exception as error:
                started.set_exception(error)

        self._io_loop.add_callback(start)
        return started.result()

    def _listen(self, rank: int, listener: Listener, future: MessageFuture) -> None:
        self._listeners[future.msg_id] = (rank, listener)

    def unregister(self, engine: int) -> None:
        """Tell the controller that the process of an engine has ended, as its nanny would.

        From any thread; the controller, and then `ids`, would miss the rank's heartbeat only
        after seconds.
        """

        def send() -> None:
            self.session.send(self._query_stream, "unregistration_request", content={"id": engine})

        try:
            self._io_loop.add_callback(send)
        except RuntimeError:  # this client was closed meanwhile
            pass

    def leave_behind(self, engines: Sequence[int]) -> None:
        """Ask engines to leave, whether they hear it or not, and let nobody count on them."""
        for engine in engines:
            if engine in self.ids:
                identity = self._build_targets(engine)[0][0]
                content = {"call": "leave", "arguments": {}}
                self._send(self._control_stream, REQUEST, content=content, ident=identity)
                self.unregister(engine)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function on the client's IO thread, on which this has to be called too."""
        self._io_loop.call_later(seconds, function)

    @property
    def closed(self) -> bool:
        """Whether it was closed; then nothing reaches the ranks through it."""
        return bool(self._closed)

    def forget_cells(self) -> None:
        """Stop listening to the cells started so far."""
        self._listeners.clear()

    def call(
        self, name: str, ranks: Sequence[int], timeout: float, **arguments: Any
    ) -> dict[int, Any]:
        """Ask ranks on the control channel, which answers also while a cell blocks.

        Parameters
        ----------
        name, arguments
            One of `mlxbench_kernel.rank.control.CALLS` and what it takes.
        ranks
            Whom to ask, all at once.
        timeout
            Seconds to wait for all of them together.

        Returns
        -------
        dict
            Answers by rank; ranks that did not answer in time, or are gone, are left out.
        """
        return self.call_each(name, dict.fromkeys(ranks, arguments), timeout)

    def groups(self, ranks: Sequence[int], timeout: float = 1.0) -> dict[int, dict[str, Any]]:
        """How far ranks have come in their group, see `Collectives.progress`.

        Parameters
        ----------
        ranks, timeout
            As in `call`.

        Returns
        -------
        dict
            By rank; those without a group, and those that do not answer, are left out.
        """
        found = self.call("progress", ranks, timeout)
        return {rank: group for rank, group in found.items() if group is not None}

    def call_each(
        self, name: str, arguments: Mapping[int, Mapping[str, Any]], timeout: float
    ) -> dict[int, Any]:
        """As `call`, with arguments of its own for each rank."""
        living = set() if self.closed else self.living()
        futures = {
            rank: self._send(
                self._control_stream,
                REQUEST,
                content={"call": name, "arguments": own},
                ident=self._identity(rank),
            )
            for rank, own in arguments.items()
            if rank in living
        }
        for rank, future in futures.items():
            self._unanswered.setdefault(rank, time.monotonic())
            future.add_done_callback(partial(self._answered, rank))
        answers = {}
        for rank, future in futures.items():
            try:
                reply = future.result(timeout=timeout)["content"]
            except FutureTimeout:
                timeout = 0.0
                continue
            if reply.get("status") == "ok":
                answers[rank] = reply["result"]
        return answers

    def _answered(self, rank: int, reply: Any) -> None:
        self._unanswered.pop(rank, None)

    def silence(self, rank: int) -> float:
        """Seconds for which a rank has answered nothing that it was asked, and said nothing."""
        now = time.monotonic()
        asked: float = self._unanswered.get(rank, now)
        return now - asked
