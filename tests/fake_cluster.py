"""A cluster whose ranks are namespaces of this process: what the magics see, without engines."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import inspect
import io
import os
from typing import ClassVar

from mlxbench_kernel.cluster.cells import CellResult
from mlxbench_kernel.cluster.history import PastCell
from mlxbench_kernel.cluster.state import ClusterInfo, Options, RankInfo
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.memory import MemorySample

SAMPLE = MemorySample(
    active=12_300_000, cache=0, peak=20_000_000, footprint=210_000_000,
    total=16_000_000_000, available=7_900_000_000, limit=None,
)  # fmt: skip


def cluster_info(size=2, options=None, **changes):
    """The description of a cluster on this machine, which another notebook may hold."""
    ranks = tuple(RankInfo(rank, "studio", 4000 + rank, "cpu", "0.32.4") for rank in range(size))
    info = ClusterInfo(
        id="mlx-c0ffee", size=size, backend="ring", seed=17, folder="/home/ada/digits",
        options=options or Options(n=size), owner=os.getpid(), owner_started=0.0,
        ranks=ranks, notes=(),
    )  # fmt: skip
    return dataclasses.replace(info, **changes)


class FakeCluster:
    """As much of `mlxbench_kernel.cluster.Cluster` as the magics use.

    `calls` has what was asked of it, in order.
    """

    clusters: ClassVar[list[ClusterInfo]] = []
    broken = False
    raises = None
    left: ClassVar[list[str]] = []
    past: ClassVar[dict[int, PastCell]] = {}

    def __init__(self, size=2, options=None, **changes):
        self.info = cluster_info(size, options, **changes)
        self.size = size
        self.id = self.info.id
        self.names = [{"rank": rank, "size": size} for rank in range(size)]
        self.calls = []
        self.between = contextlib.nullcontext

    @classmethod
    def up(cls, n=None, *, progress=None, **arguments):
        if cls.broken:
            raise ClusterError("rank 1 on studio did not come up: type %mlx_dist doctor")
        progress(0.5, "engines")
        progress(1.0, "joining")
        cluster = cls(n or 2, Options(n, **arguments))
        cluster.calls.append(("up", n, arguments))
        return cluster

    @classmethod
    def attach(cls, id):
        found = [info for info in cls.clusters if info.id == id]
        if not found:
            raise UsageError(f"there is no cluster {id!r}: type %mlx_dist attach")
        return cls(found[0].size, found[0].options, id=id)

    @classmethod
    def running(cls):
        return list(cls.clusters)

    def status(self):
        return [
            dataclasses.replace(info, memory=SAMPLE, state="busy 3 s · line 2: mx.eval(loss)")
            for info in self.info.ranks
        ]

    def last_cell(self):
        return dict(self.past)

    def restart(self, ranks=None, progress=None, tell=None):
        self.calls.append(("restart", *([] if ranks is None else [ranks])))
        if self.broken:
            raise ClusterError("rank 0 on studio did not come up: type %mlx_dist doctor")

    def heal(self, drop=False, progress=None, tell=None):
        self.calls.append(("heal", drop))
        tell("rank 1 on studio is back, 2.1 s")

    def collectives(self, ranks=None):
        return {rank: [] for rank in ranks}

    def interrupt(self, ranks=None, tell=None):
        self.calls.append(("interrupt", ranks))
        return {"interrupted": ranks}

    def down(self):
        self.calls.append(("down",))
        return self.left

    def logs(self, ranks=None, lines=40):
        self.calls.append(("logs", ranks, lines))
        return {rank: f"the log of rank {rank}\n" for rank in ranks}

    def push(self, values, ranks=None, progress=None):
        self.calls.append(("push", ranks))
        for rank in ranks:
            self.names[rank].update(values)

    def pull(self, names, ranks=None, progress=None):
        self.calls.append(("pull", ranks))
        for name in names:
            lacking = [rank for rank in ranks if name not in self.names[rank]]
            if lacking:
                raise UsageError(f"rank {lacking[0]} has no variable {name!r}: type its name")
        return {rank: {name: self.names[rank][name] for name in names} for rank in ranks}

    def complete(self, code, cursor):
        self.calls.append(("complete", code, cursor))
        word = code[:cursor].split()[-1] if code[:cursor].strip() else ""
        known = ["loss", "loss_history", "len", "model"]
        return cursor - len(word), [each for each in known if each.startswith(word)]

    def execute(
        self,
        code,
        *,
        ranks=None,
        timeout=None,
        output=None,
        name="",
        shift=0,
        setup=False,
        tell=None,
    ):
        ranks = list(range(self.size)) if ranks is None else list(ranks)
        self.calls.append(("execute", code, ranks, timeout))
        result = CellResult()
        self.values = {}
        for rank in ranks:
            self._run(rank, code, output, result)
        output.finish()
        if self.raises is not None:
            raise self.raises
        return result

    def _run(self, rank, code, output, result):
        written = io.StringIO()
        value = None
        try:
            with contextlib.redirect_stdout(written):
                value = asyncio_free_run(code, self.names[rank])
        except Exception as error:
            result.errors[rank] = {
                "ename": type(error).__name__,
                "evalue": str(error),
                "traceback": [f"{type(error).__name__}: {error}"],
            }
            output.message(rank, "error", result.errors[rank])
        self.values[rank] = value
        if written.getvalue():
            output.message(rank, "stream", {"name": "stdout", "text": written.getvalue()})
        if value is not None:
            data = {"data": {"text/plain": repr(value)}, "metadata": {}, "execution_count": 1}
            output.message(rank, "execute_result", data)
        output.done(rank)

    def results(self, ranks=None):
        return {rank: self.values[rank] for rank in ranks}


def asyncio_free_run(code, names):
    """Run a cell, with top-level await; the value of its last line when that is an expression."""
    tree = ast.parse(code)
    value = None
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    for part, mode in ((tree, "exec"), (last, "eval")):
        if part is None:
            continue
        compiled = compile(part, "<cell>", mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(compiled, names)
        if inspect.iscoroutine(value):
            loop = asyncio.new_event_loop()  # a notebook's own loop is running
            running = asyncio._get_running_loop()
            asyncio._set_running_loop(None)
            try:
                value = loop.run_until_complete(value)
            finally:
                asyncio._set_running_loop(running)
                loop.close()
    return value


def magics(shell):
    """The magics of a shell, which hold its cluster."""
    return shell.magics_manager.registry["RanksMagics"]
