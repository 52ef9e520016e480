"""The compiled module: built once, explained where it cannot be, and free of the GIL."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxbench_kernel.native import build as building

ROOT = Path(building.__file__).parents[2]
BUILD = [sys.executable, "-m", "mlxbench_kernel.native"]
ASK = """
from mlxbench_kernel import native
ready = native.ready()
module = native.load()
print(ready, module and module.init, native.reason())
"""


@dataclass(frozen=True)
class Built:
    """What two processes did that asked for the module at the same time."""

    cache: Path
    compilations: int
    said: list[str]


def environment(cache: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "CXX"}
    return {**kept, "MLXBENCH_CACHE": str(cache), **variables}


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def ask(env: dict[str, str], code: str = ASK) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("native")
    count = folder / "compilations"
    compiler = script(folder / "c++", f'echo one >> {count}; exec {shutil.which("c++")} "$@"')
    env = environment(folder / "cache", CXX=compiler)
    ranks = [
        subprocess.Popen(BUILD, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return Built(folder / "cache", len(count.read_text().split()), said)


def test_ranks_that_start_at_once_compile_once(built: Built) -> None:
    assert built.compilations == 1
    for line in built.said:
        assert line.startswith("Compiled the native module in ") and line.count("\n") == 1, line
        assert Path(line.strip().rpartition(": ")[2]).is_relative_to(built.cache)
    (folder,) = built.cache.iterdir()
    (module,) = folder.glob("*.so")
    assert {file.name for file in folder.iterdir()} == {module.name, "lock", "compile.log"}


def test_later_processes_take_what_is_there(built: Built, tmp_path: Path) -> None:
    without_compiler = environment(built.cache, PATH=str(tmp_path))
    assert ask(without_compiler).startswith("True <nanobind")
    again = subprocess.check_output(BUILD, cwd=ROOT, env=without_compiler, text=True)
    assert again.startswith("The native module is there already: ")


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    env = environment(tmp_path, PATH=str(tmp_path))
    install = "xcode-select --install" if sys.platform == "darwin" else "apt install g++"
    answer = ask(env)
    assert answer.startswith("False None there is no C++ compiler on this ")
    assert answer.endswith(install)
    by_hand = subprocess.check_output(BUILD, cwd=ROOT, env=env, text=True)
    assert by_hand.startswith("No native module (mlxbench works without it): there is no C++")
    assert by_hand.count("\n") == 1


def test_without_nanobind_it_says_what_to_install(tmp_path: Path) -> None:
    missing = "import sys; sys.modules['nanobind'] = None"  # as if it were not installed
    answer = ask(environment(tmp_path), missing + ASK)
    assert answer == "False None nanobind is not installed: pip install nanobind"


def test_a_compiler_that_fails_is_quoted_in_one_line(tmp_path: Path) -> None:
    failing = script(
        tmp_path / "c++", "echo building; echo 'a.h:3: error: no such thing' >&2; exit 1"
    )
    answer = ask(environment(tmp_path / "cache", CXX=failing))
    assert answer.startswith(f"False None {failing} (g++ 11, clang 14 or newer is needed) failed: ")
    assert "a.h:3: error: no such thing" in answer and "\n" not in answer
    log = Path(answer.rpartition("all it said: ")[2].rstrip(")"))
    assert log.read_text() == "building\na.h:3: error: no such thing\n"

    answer = ask(environment(tmp_path / "cache", CXX=str(tmp_path / "none")))
    assert answer.startswith(f"False None the C++ compiler {tmp_path / 'none'} does not start: ")


def test_a_rank_that_waited_for_a_failed_compilation_does_not_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", script(tmp_path / "c++", f"touch {tmp_path / 'compiled'}; exit 1"))
    waiting = threading.Event()
    flock = fcntl.flock

    def announced(file: object, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            waiting.set()
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", announced)
    errors: list[str] = []

    def second() -> None:
        try:
            building.build()
        except building.BuildError as error:
            errors.append(str(error))

    folder = building.target().parent
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        lock.write("the disk is full")
    thread.join(10)
    assert errors == ["the disk is full"]
    assert not (tmp_path / "compiled").exists()


def test_a_compiler_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setenv("MLXBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", script(tmp_path / "c++", f"exec > {alive}; echo; sleep 60 & wait"))
    with pytest.raises(building.BuildError, match=r"c\+\+ took more than 1 s to compile"):
        building.build(timeout=1)
    assert os.read(reader, 1) == b"\n"
    # The other end closes when the last of its processes is gone.
    assert select.select([reader], [], [], 5)[0] and os.read(reader, 1) == b""
    os.close(reader)
    assert [file.name for file in building.target().parent.glob("*/")] == []


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = ask(environment(tmp_path / "file" / "cache"))
    assert answer.startswith(f"False None cannot write to the cache folder {tmp_path}/file/cache (")
    assert answer.endswith("set MLXBENCH_CACHE to a folder where you can")


def test_a_damaged_module_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXBENCH_CACHE", str(tmp_path))
    damaged = building.target()
    damaged.parent.mkdir()
    damaged.write_bytes(b"not a library")
    answer = ask(environment(tmp_path))
    assert answer.startswith(f"True None {damaged} does not load; remove it to compile it anew (")


def test_another_nanobind_than_that_of_mlx_is_found_out(tmp_path: Path) -> None:
    # Types in another domain are as far apart as those of another nanobind.
    elsewhere = script(
        tmp_path / "c++",
        f'exec {shutil.which("c++")} "$@" -O0 -UNB_DOMAIN -DNB_DOMAIN=elsewhere',
    )
    answer = ask(environment(tmp_path / "cache", CXX=elsewhere))
    assert answer.startswith("False None nanobind 3.")
    assert "is not the one that MLX" in answer and "pip install nanobind==VERSION" in answer


def test_modules_are_kept_per_user_and_per_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLXBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    sysconfig.get_config_vars()
    monkeypatch.setattr(sys, "platform", "linux")
    assert building.cache() == tmp_path / ".cache" / "mlxbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert building.cache() == tmp_path / "xdg" / "mlxbench"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert building.cache() == tmp_path / "Library" / "Caches" / "mlxbench"
    monkeypatch.setenv("MLXBENCH_CACHE", "~/mine")
    assert building.cache() == tmp_path / "mine"

    import mlx.core as mx

    before = building.target()
    assert before.parent.name.startswith(f"mlx-{mx.__version__}-nanobind-3.")  # type: ignore[attr-defined]
    monkeypatch.setattr(mx, "__file__", "/elsewhere/mlx/core.so")
    assert building.target() != before


def test_on_macos_it_links_as_python_modules_do_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags of nanobind's ``nanobind-config.cmake``; ``xcode-select(1)``, macOS 15, 2026-11-23."""
    tools = script(tmp_path / "xcode-select", "exit 2")  # as before the tools are installed
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CXX", raising=False)
    sysconfig.get_config_vars()  # of this system: Python reads them once
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(building.BuildError, match="xcode-select --install"):
        building._command(tmp_path / "out.so")

    script(Path(tools), "echo /Library/Developer/CommandLineTools")
    command = " ".join(building._command(tmp_path / "out.so"))
    assert command.startswith("/usr/bin/c++ -std=c++20 ")
    assert " -undefined dynamic_lookup " in command and " -Wl,-rpath," in command


# A rank in the middle of `init`. Its second thread answers whatever it is asked: with the
# number of listening sockets, or by shutting them.
RANK = """
import os, socket, stat, sys, threading, time
from mlxbench_kernel import native

def listening():
    for fd in os.listdir("/dev/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                with socket.socket(fileno=os.dup(int(fd))) as copy:
                    if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        yield copy
        except OSError:
            continue

shut = None
def answer():
    global shut
    for request in sys.stdin:
        print(len(list(listening())), flush=True)
        if request == "shut\\n":
            shut = time.monotonic()
            for copy in listening():
                copy.shutdown(socket.SHUT_RDWR)

module = native.load()
assert module is not None, native.reason()
import mlx.core as mx
threading.Thread(target=answer, daemon=True).start()
try:
    group = module.init("ring")
except RuntimeError as error:
    print(f"{error} after {time.monotonic() - shut:.2f}", flush=True)
else:
    total = mx.distributed.all_sum(mx.array(group.rank() + 1.0), group=group)
    print("sum", total.item(), flush=True)
"""


@pytest.fixture
def ring(built: Built, tmp_path: Path) -> Path:
    """A hostfile of two ranks on free ports of this machine."""
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (first, second)]
    hostfile = tmp_path / "ring.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    return hostfile


@contextmanager
def rank(number: int, ring: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    env = environment(cache, MLX_RANK=str(number), MLX_HOSTFILE=str(ring))
    with subprocess.Popen(
        [sys.executable, "-c", RANK],
        cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        alarm = threading.Timer(30, process.kill)  # a rank that holds the GIL answers nothing
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            process.kill()


def request(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def wait_until_blocked(process: subprocess.Popen[str]) -> None:
    """Until rank 0 listens, which is the last thing it does before it waits for rank 1."""
    while (answer := request(process, "listening")) != "1":
        assert answer == "0", "the rank died or holds the GIL"


def test_threads_run_while_a_rank_waits_for_its_neighbour(ring: Path, built: Built) -> None:
    with rank(0, ring, built.cache) as first:
        wait_until_blocked(first)
        assert [request(first, "still there?") for _ in range(100)] == ["1"] * 100
        with rank(1, ring, built.cache) as second:
            assert first.stdout is not None and second.stdout is not None
            assert first.stdout.readline() == second.stdout.readline() == "sum 3.0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS refuses to shut a listening socket")
def test_a_rank_that_waits_in_vain_can_be_called_back(ring: Path, built: Built) -> None:
    with rank(0, ring, built.cache) as first:
        wait_until_blocked(first)
        assert request(first, "shut") == "1"
        assert first.stdout is not None
        message, _, seconds = first.stdout.readline().rpartition(" after ")
        assert "Accept failed" in message
        assert float(seconds) < 1
