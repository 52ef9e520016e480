"""The collectives of a rank: its group, which outlives its connections, and the log of them.

``mx.distributed.init`` gives a *lasting* group here. What MLX executes passes through it, also
inside ``mx.compile`` and in arrays that were made earlier (``native/group.h``), so every
collective is logged, can be refused before it begins, and freed when it would wait for ever;
and the connections can be made anew without the user's variables noticing.

The functions of ``mx.distributed`` are wrapped, only to note the line that calls them.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx

from mlxbench_kernel.lines import calling_line
from mlxbench_kernel.rank.requests import FREED_IN_PLACE

WHOLE = ("all_sum", "all_max", "all_min", "all_gather", "sum_scatter")
PAIRWISE = ("send", "recv", "recv_like")
ALONE = "a cell for only some of the ranks cannot do a collective of the whole group: "


class Collectives:
    """What `GROUP` is: the one group of this process.

    Attributes
    ----------
    group : mlx.core.distributed.Group or None
        The lasting group; None before `begin`, MLX's own without the native module.
    place : int
        The rank that this process had when it joined.
    backend : str
        Its backend, as ``mx.distributed.init`` names it.
    """

    def __init__(self) -> None:
        self.place = 0
        self.group: Any = None
        self.backend = ""
        self._native: ModuleType | None = None
        self._before = 0  # connections that the other ranks had before this process was there
        self._sites: dict[str, Any] = {}
        self._calls = 0
        self._called = 0.0
        self._there: Sequence[int] = ()
        self._originals: dict[str, Callable[..., Any]] = {}

    @property
    def lasting(self) -> bool:
        """Whether the group is logged and can be limited, and on ring also freed and renewed."""
        return self._native is not None and self.group is not None

    def begin(
        self, raw: Any, backend: str, native: ModuleType | None, sockets: Sequence[int]
    ) -> Any:
        """Take over MLX's group and wrap ``mx.distributed``.

        Parameters
        ----------
        raw : mlx.core.distributed.Group
            As MLX made it.
        backend
            Its backend.
        native
            The native module, None without.
        sockets
            Duplicates of the sockets of the group, which belong to it from now on.

        Returns
        -------
        mlx.core.distributed.Group
            What is handed out for it.
        """
        self.place = raw.rank()
        self.backend = backend
        self._native = native
        if native is None:
            self.group = raw
        else:
            self.group = native.lasting(raw, list(sockets), backend in FREED_IN_PLACE)
        for name in WHOLE + PAIRWISE:
            self._originals[name] = original = getattr(mx.distributed, name)
            setattr(mx.distributed, name, self._wrapped(original))
        self._originals["init"] = original = mx.distributed.init
        mx.distributed.init = self._wrapped_init(original)
        return self.group

    def renew(self, raw: Any, sockets: Sequence[int]) -> None:
        """Go on with new connections; what holds the group does not notice.

        Parameters
        ----------
        raw, sockets
            As in `begin`.
        """
        assert self._native is not None
        size = self.group.size()
        self._native.flush(self.group)
        self._native.replace(self.group, raw, list(sockets), self.backend in FREED_IN_PLACE)
        if self.group.size() != size:
            self._native.forget_compiled()  # traces hold the old size

    def number_link(self, link: int) -> None:
        """Say which number the present connections have on all ranks.

        A rank that was started again has seen fewer of them than the others.
        """
        if self.lasting:
            self._before += link - self.progress()["link"]  # type: ignore[index]

    def original(self, name: str) -> Callable[..., Any]:
        """A function of ``mx.distributed`` as MLX has it."""
        found: Callable[..., Any] = self._originals.get(name) or getattr(mx.distributed, name)
        return found

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def collective(*args: Any, group: Any = None, **keywords: Any) -> Any:
            if group is None or group is self.group:
                if self._native is None:
                    self._refuse_alone(original.__name__)
                group = self.site(calling_line(sys._getframe(1)).text)
            return original(*args, group=group, **keywords)

        return collective

    def _refuse_alone(self, name: str) -> None:
        """Without the native module, what cannot end is refused where it is called."""
        if self._there:
            raise RuntimeError(ALONE + name)
        self._calls += 1
        self._called = time.time()

    def _wrapped_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def init(strict: bool = False, backend: str = "any", **keywords: Any) -> Any:
            if backend in ("any", self.backend):
                return self.group
            return original(strict, backend, **keywords)

        return init

    def site(self, line: str) -> Any:
        """The group, as it is called from a line."""
        if self._native is None:
            return self.group
        site = self._sites.get(line)
        if site is None:
            site = self._sites[line] = self._native.at(self.group, line)
        return site

    # -- what others are told, from any thread ---------------------------------

    def progress(self) -> dict[str, Any] | None:
        """How far this rank has come; None where there is no group.

        Without the native module only the calls of collectives are known, and what a cell has
        called counts as running until the cell ends.

        Returns
        -------
        dict
            ``link`` (how often the group was made anew), ``whole`` (collectives of the whole
            group that were asked for on it), ``peers`` (list of rank, sends, receives),
            ``chain`` (checksum of their operations, shapes and dtypes), ``limited``,
            ``refused`` (whether the limits have refused anything), ``broken`` (why, "" when it
            is not), ``running`` (operation, peer, number; None when none runs), of that
            ``shape``, ``dtype`` and ``line`` where they are known, ``certain`` (False where it
            may have ended) and ``waits`` (seconds since that began).
        """
        if self.group is None:
            return None
        if self._native is None:
            running = ("a collective", -1, self._calls) if self._called else None
            waits = time.time() - self._called if self._called else 0.0
            return {
                "link": 0, "whole": self._calls, "peers": [], "chain": 0, "limited": False,
                "refused": False, "broken": "", "running": running, "certain": False,
                "waits": waits,
            }  # fmt: skip
        said: dict[str, Any] = self._native.progress(self.group)
        since = said.pop("since")
        said["link"] += self._before
        said["peers"] = [(peer, *counts) for peer, counts in said["peers"].items()]
        said["waits"] = time.time() - since if said["running"] is not None else 0.0
        if "dtype" in said:
            said["dtype"] = _dtype(said["dtype"])
        return said

    @property
    def alone(self) -> bool:
        """Whether a cell for only some of the ranks runs."""
        return bool(self._there)

    @property
    def intact(self) -> bool:
        """Whether nothing was broken off or refused since the connections were made."""
        return not self.lasting or self._native.is_intact(self.group)  # type: ignore[union-attr]

    def log(self, since: int = 0) -> list[dict[str, Any]]:
        """The last collectives, of which the oldest are forgotten after 4096.

        Returns
        -------
        list of dict
            ``number`` (in the order of this process), ``link``, ``operation``, ``peer``,
            ``turn`` (its number among those of the whole group on this link, or with this
            peer), ``shape``, ``dtype``, ``group``, ``line``, ``chain``; ``asked``, ``begun``
            and ``done`` (Unix time; 0 before, -1 where it cannot be known).
        """
        if not self.lasting:
            return []
        first, rows = self._native.collectives(since)  # type: ignore[union-attr]
        names = (
            "link", "operation", "peer", "turn", "shape", "dtype", "group", "line", "chain",
            "asked", "begun", "done",
        )  # fmt: skip
        entries = []
        for number, row in enumerate(rows, first):
            entry = {"number": number, **dict(zip(names, row, strict=True))}
            entry["link"] += self._before
            entry["dtype"] = _dtype(entry["dtype"])
            entries.append(entry)
        return entries

    def spent(self, since: int) -> tuple[int, float]:
        """Seconds in collectives, with waiting for other ranks, from a number of the log on.

        Returns
        -------
        (int, float)
            The number to go on from; NaN seconds where there is no log, or where collectives run
            on a GPU, so that their ends are not known.
        """
        if not self.lasting:
            return since, math.nan
        first, count, seconds, known = self._native.spent(since)  # type: ignore[union-attr]
        end = first + count
        # A fast model has more than the log keeps between two looks: the others took as long.
        return end, seconds * (end - since) / max(count, 1) if known else math.nan

    def chain(self, whole: int) -> int | None:
        """The checksum after this many collectives of the present link, None where forgotten."""
        said = self.progress()
        if said is None or not self.lasting:
            return None
        if whole == said["whole"]:
            return int(said["chain"])
        for entry in reversed(self.log()):
            if (entry["link"], entry["peer"], entry["turn"]) == (said["link"], -1, whole - 1):
                return int(entry["chain"])
        return 0 if whole == 0 else None

    # -- what is let through ---------------------------------------------------

    def limit(self, whole: int, peers: Sequence[tuple[int, int, int]], reason: str) -> None:
        """Refuse what others will not take part in, and free what waits for it.

        Parameters
        ----------
        whole
            How many collectives of the whole group may happen on this link.
        peers
            For some ranks, how many sends to and receives from them may: rank, sends, receives.
        reason
            Message of the error that is raised instead.
        """
        if self.lasting:
            pairs = {peer: (sends, receives) for peer, sends, receives in peers}
            self._native.limit(self.group, whole, pairs, reason)  # type: ignore[union-attr]

    def lift(self, force: bool = False) -> None:
        """Take limits back; those that have refused something only when forced."""
        if self.lasting:
            self._native.lift(self.group, force)  # type: ignore[union-attr]

    def rest(self) -> None:
        """Take note that no cell runs."""
        self._called = 0.0
        if self.lasting:
            self._native.rest(self.group)  # type: ignore[union-attr]

    def release(self, reason: str) -> None:
        """Free whatever waits, and refuse everything until `renew`."""
        if self.lasting:
            self._native.release(self.group, reason)  # type: ignore[union-attr]

    def only(self, ranks: Sequence[int]) -> None:
        """Refuse what needs ranks beside these; none lets everything through again."""
        self._there = ranks
        if self.lasting:
            self._native.only(self.group, set(ranks), ALONE)  # type: ignore[union-attr]


def _dtype(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


GROUP = Collectives()
