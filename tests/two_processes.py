"""Two processes with a ring between them and our group over it; no Jupyter, no ipyparallel.

Each process has two threads that take Python code: the main thread, which evaluates, and a side
thread, which stands for the control channel and answers while the main thread is blocked.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HANGS_SECONDS = 120  # until a process that does not end is killed

RANK = """
import json, os, queue, sys, tempfile, threading, traceback
import mlx.core as mx
import mlx.nn as nn
from mlxbench_kernel import native
from mlxbench_kernel.rank import ports
from mlxbench_kernel.rank.collectives import GROUP

rank = int(sys.argv[1])
module = native.load()
assert module is not None, native.reason()

def connect(addresses):
    module.forget_backends()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([[each] for each in addresses], file)
        file.flush()
        os.environ.update(MLX_RANK=str(rank), MLX_HOSTFILE=file.name)
        raw = module.init("ring")
    return raw, ports.connections([addresses[rank]], [addresses[1 - rank]])

names = dict(globals())
waiting = queue.Queue()
writing = threading.Lock()

def work(number, code):
    try:
        exec(compile(code, "<cell>", "exec"), names)
        said = {"value": names.pop("value", None)}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    with writing:
        print(json.dumps({"number": number, **said}), flush=True)

def listen():
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["side"]:
            work(asked["number"], asked["code"])
        else:
            waiting.put(asked)
    os._exit(0)

threading.Thread(target=listen, daemon=True).start()
while True:
    asked = waiting.get()
    work(asked["number"], asked["code"])
"""


class RankError(Exception):
    """What a process raised."""


class Rank:
    """One of the processes."""

    def __init__(self, number: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RANK, str(number)],
            cwd=ROOT, env=dict(os.environ), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._answers: dict[int, dict[str, Any]] = {}
        self._asked = 0
        self._alarm = threading.Timer(HANGS_SECONDS, self._process.kill)
        self._alarm.start()

    def ask(self, code: str, side: bool = False) -> int:
        """Have code run; the number to wait for."""
        assert self._process.stdin is not None
        self._asked += 1
        asked = {"number": self._asked, "code": code, "side": side}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._asked

    def answer(self, number: int) -> Any:
        """What the code has left in `value`."""
        assert self._process.stdout is not None
        while number not in self._answers:
            line = self._process.stdout.readline()
            assert line, "the process has died or was killed because it hung"
            said = json.loads(line)
            self._answers[said["number"]] = said
        said = self._answers.pop(number)
        if "error" in said:
            raise RankError(said["error"])
        return said["value"]

    def run(self, code: str, side: bool = False) -> Any:
        """`ask` and `answer`."""
        return self.answer(self.ask(code, side))

    def wait_until_blocked(self) -> None:
        """Until this process is inside a collective."""
        while self.run("value = GROUP.progress()['running']", side=True) is None:
            pass

    def kill(self) -> None:
        self._alarm.cancel()
        self._process.kill()
        self._process.communicate()


class Pair:
    """Both processes, as ranks 0 and 1 of one group."""

    def __init__(self) -> None:
        self.ranks = [Rank(0), Rank(1)]
        self.run(
            f"raw, sockets = connect({free_addresses()})\n"
            "group = GROUP.begin(raw, 'ring', module, sockets)\ndel raw"
        )

    def run(self, code: str) -> list[Any]:
        """Have both run the same; what each has left in `value`."""
        numbers = [rank.ask(code) for rank in self.ranks]
        return [rank.answer(number) for rank, number in zip(self.ranks, numbers, strict=True)]

    def renew(self) -> None:
        """Make the connections anew."""
        self.run(f"GROUP.release('anew')\nGROUP.renew(*connect({free_addresses()}))")

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()


def free_addresses() -> list[str]:
    """Two ports of this machine that were free just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


@contextmanager
def two_processes() -> Iterator[Pair]:
    """Both, until the end of the block."""
    pair = Pair()
    try:
        yield pair
    finally:
        pair.kill()
