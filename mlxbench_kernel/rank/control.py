"""What a rank answers on the control channel, whatever its main thread is doing.

The handlers run on ipykernel's control thread. One message type carries all calls:
``mlxbench_request`` with ``{"call": name, "arguments": {...}}``, of those named here and of those
that libraries have put into `ANSWERS`; the reply's content is
``{"status": "ok", "result": ...}`` or ``{"status": "error", "message": ...}``.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from IPython.core.completer import provisionalcompleter, rectify_completions

from mlxbench_kernel.memory.answers import MemoryAnswers
from mlxbench_kernel.rank.activity import Activity
from mlxbench_kernel.rank.answers import ANSWERS
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.files import keep_private
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.rank.recorder import Recorder
from mlxbench_kernel.rank.requests import REQUEST

if TYPE_CHECKING:
    from mlxbench_kernel.rank.engine import RankKernel

CALLS = frozenset(
    {
        "sample", "interrupt", "leave", "complete", "listening", "watch", "progress",
        "chain", "collectives", "limit", "lift", "release", "protected", "rescue", "history",
        "links", "let_go", "number_link", "number_protected",
    }
)  # fmt: skip


class ControlHandlers:
    """Answers of one rank to the calls named in `CALLS`.

    Parameters
    ----------
    kernel
        The kernel of the rank.
    """

    def __init__(self, kernel: RankKernel) -> None:
        self._kernel = kernel
        self._activity = Activity(kernel.shell)
        keep_private(kernel.parent.folder)
        self._recorder = Recorder(kernel.shell, kernel.parent.folder)

    def install(self) -> None:
        """Put the handler into the kernel."""
        self._kernel.control_handlers[REQUEST] = self._answer
        shell = self._kernel.shell
        self.memory = MemoryAnswers(shell.user_ns, shell.user_ns_hidden)
        ANSWERS.update(self.memory.calls)

    def _answer(self, stream: Any, identity: Any, parent: dict[str, Any]) -> None:
        request = parent["content"]
        name = request["call"]
        try:
            answer = getattr(self, name) if name in CALLS else ANSWERS.get(name)
            if answer is None:
                raise ValueError(f"unknown call {name!r}")
            result = answer(**request.get("arguments", {}))
            content = {"status": "ok", "result": result}
        except Exception as error:
            content = {"status": "error", "message": f"{type(error).__name__}: {error}"}
        self._kernel.session.send(
            stream, "mlxbench_reply", content=content, parent=parent, ident=identity
        )

    def sample(self) -> dict[str, Any]:
        """Memory now, the largest variables as last seen (`Recorder.largest`), and what the main
        thread is doing (see `watch`), and ``published``: whether it has a second connection to
        the controller's iopub address (`Publisher.opened`)."""
        from mlxbench_kernel import memory

        return {
            "memory": dataclasses.asdict(memory.sample()),
            "largest": self._recorder.largest,
            "published": self._kernel.publisher.opened,
            **self.watch(),
        }

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in the running cell; whether one is running."""
        busy = self._activity.busy
        if busy:
            os.kill(os.getpid(), signal.SIGINT)
            # An awaiting cell is cancelled in the signal handler, which does not wake the loop.
            self._kernel.parent.loop.add_callback(lambda: None)
        return busy

    def watch(self) -> dict[str, Any]:
        """What the main thread is doing (see `Activity.now`), and ``group``: how far the group
        has come (see `Collectives.progress`)."""
        return {**self._activity.now(), "group": GROUP.progress()}

    def progress(self) -> dict[str, Any] | None:
        """How far the group has come, see `Collectives.progress`."""
        return GROUP.progress()

    def chain(self, whole: int) -> int | None:
        """See `Collectives.chain`."""
        return GROUP.chain(whole)

    def collectives(self, since: int = 0) -> list[dict[str, Any]]:
        """The collective log, see `Collectives.log`."""
        return GROUP.log(since)

    def number_link(self, link: int) -> None:
        """See `Collectives.number_link`."""
        GROUP.number_link(link)

    def limit(self, whole: int, peers: list[tuple[int, int, int]], reason: str) -> None:
        """See `Collectives.limit`."""
        GROUP.limit(whole, peers, reason)

    def lift(self, force: bool = False) -> None:
        """See `Collectives.lift`."""
        GROUP.lift(force)

    def release(self, reason: str) -> None:
        """See `Collectives.release`."""
        GROUP.release(reason)

    def protected(self) -> list[int]:
        """See `Protection.counts`."""
        return PROTECTION.counts()

    def number_protected(self, count: int) -> None:
        """See `Protection.number`."""
        PROTECTION.number(count)

    def rescue(self, folder: str) -> list[int]:
        """Write the protected state to files, see `rescue.save`."""
        from mlxbench_kernel.rank.rescue import save

        return save(PROTECTION, folder)

    def listening(self, address: str) -> bool:
        """Whether MLX listens on this address, waiting for a neighbour (`ports.listening`)."""
        from mlxbench_kernel.rank import ports

        return ports.listening(address)

    def links(self, own: list[str], right: list[str]) -> dict[str, list[Any]]:
        """The connections of this rank's ring (`neighbours.links`)."""
        from mlxbench_kernel.rank import neighbours

        return neighbours.links(own, right)

    def let_go(self, own: list[str], right: list[str]) -> None:
        """Leave a wrong ring (`neighbours.let_go`)."""
        from mlxbench_kernel.rank import neighbours

        neighbours.let_go(own, right)

    def leave(self) -> None:
        """End this process, just after this reply has left."""
        threading.Timer(0.1, self._kernel.parent.leave).start()

    def history(self, cells: int | None = None) -> list[dict[str, Any]]:
        """What the last cells put out (see `History.last`)."""
        return self._kernel.history.last(cells)

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        """Completions of `code` at `cursor` (characters) in this rank's namespace."""
        with provisionalcompleter():
            found = list(
                rectify_completions(code, self._kernel.shell.Completer.completions(code, cursor))
            )
        start = found[0].start if found else cursor
        return {"start": start, "matches": [completion.text for completion in found]}
