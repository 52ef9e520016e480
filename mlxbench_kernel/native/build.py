"""Compile the native module on this machine, once per MLX, nanobind and Python version.

The flags are those of nanobind's own CMake build (``nanobind-config.cmake`` of nanobind
3.1.0, read 2026-11-23), without its size optimisations. ``NB_DOMAIN=mlx`` is MLX's own
(``python/src/CMakeLists.txt``): types are shared only within a domain.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TextIO

SOURCE = Path(__file__).with_name("module.cpp")
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
NAME = "mlxbench_native"
FLAGS = (
    "-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing",
    "-DNB_DOMAIN=mlx", "-DNDEBUG",
)  # fmt: skip
# Python's own symbols are found in the process; only macOS's linker has to be told so.
MACOS_FLAGS = ("-undefined", "dynamic_lookup")


class BuildError(Exception):
    """The native module cannot be had; the message is one line that says what to install."""


def cache() -> Path:
    """Folder for compiled modules: ``$MLXBENCH_CACHE``, or mlxbench's in the user's caches.

    That is ``~/Library/Caches`` on macOS and ``$XDG_CACHE_HOME`` or ``~/.cache`` elsewhere
    (XDG Base Directory Specification 0.8: an empty variable counts as unset).
    """
    if chosen := os.environ.get("MLXBENCH_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlxbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlxbench"


def installed() -> tuple[ModuleType, ModuleType]:
    """The modules ``mlx.core`` and ``nanobind`` of this process.

    Raises
    ------
    BuildError
        nanobind is not installed.
    """
    mlx = importlib.import_module("mlx.core")
    try:
        return mlx, importlib.import_module("nanobind")
    except ImportError:
        raise BuildError("nanobind is not installed: pip install nanobind") from None


def target() -> Path:
    """Path of the compiled module for the MLX, nanobind and Python of this process.

    Raises
    ------
    BuildError
        nanobind is not installed.
    """
    mlx, nanobind = installed()
    # The path to MLX's library is compiled in, so each environment has a module of its own.
    rest = hashlib.sha256(b"".join(path.read_bytes() for path in (SOURCE, *HEADERS)))
    rest.update(repr((FLAGS, mlx.__file__)).encode())
    folder = "-".join(
        (
            f"mlx-{mlx.__version__}",
            f"nanobind-{nanobind.__version__}",
            str(sysconfig.get_config_var("SOABI")),
            rest.hexdigest()[:12],
        )
    )
    return cache() / folder / (NAME + str(sysconfig.get_config_var("EXT_SUFFIX")))


def build(timeout: float = 300.0) -> Path:
    """Compile unless done before; processes that ask at the same time compile once.

    Parameters
    ----------
    timeout
        Seconds the compiler may take.

    Returns
    -------
    Path
        The compiled module.

    Raises
    ------
    BuildError
        No compiler, no nanobind, no Python headers, a cache folder that cannot be written
        to, or the compiler failed (all it said is in ``compile.log`` beside the module).
    """
    path = target()
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path.parent / "lock", "a+") as lock:
            waited = _acquire(lock)
            if path.exists():
                return path
            if waited:  # its holder failed: so would this process, after as long a wait
                lock.seek(0)
                if said := lock.read():
                    raise BuildError(said)
            lock.truncate(0)
            try:
                _compile(path, timeout)
            except BuildError as error:
                lock.write(str(error))
                raise
    except OSError as error:
        raise BuildError(
            f"cannot write to the cache folder {cache()} ({error.strerror}): "
            "set MLXBENCH_CACHE to a folder where you can"
        ) from None
    return path


def _acquire(lock: TextIO) -> bool:
    """Lock the file; whether another process held it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return True
    return False


def _compile(path: Path, timeout: float) -> None:
    log = path.with_name("compile.log")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder, path.name)
        command = _command(partial)
        try:
            status = _run(command, log, timeout)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{command[0]} took more than {timeout:.0f} s to compile") from None
        if status != 0:
            lines = log.read_text(errors="replace").splitlines() or [f"exit status {status}"]
            first = next((line for line in lines if "error" in line), lines[-1])
            raise BuildError(
                f"{command[0]} (g++ 11, clang 14 or newer is needed) failed: {first.strip()} "
                f"(all it said: {log})"
            )
        os.replace(partial, path)


def _run(command: list[str], log: Path, timeout: float) -> int:
    """Exit status of the compiler, whose messages go to `log`."""
    with open(log, "wb") as output:
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, "LC_ALL": "C"},  # "error" is looked for in what it says
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # c++ starts processes, which have to end with it
            )
        except OSError as error:
            raise BuildError(f"the C++ compiler {command[0]} does not start: {error}") from None
        with process:
            try:
                return process.wait(timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def _command(output: Path) -> list[str]:
    """The command that compiles the module into `output`."""
    mlx, binding = (Path(str(module.__file__)).parent for module in installed())
    python = Path(sysconfig.get_paths()["include"])
    compiler = _compiler()
    if not (python / "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BuildError(f"Python's headers are missing: apt install python{version}-dev")
    include = (
        binding / "include",
        binding / "ext" / "robin_map" / "include",
        mlx / "include",
        python,
    )
    return [
        *compiler, *FLAGS, *(f"-I{folder}" for folder in include),
        str(binding / "src" / "nb_combined.cpp"), str(SOURCE),
        f"-L{mlx / 'lib'}", "-lmlx", f"-Wl,-rpath,{mlx / 'lib'}",
        *(MACOS_FLAGS if sys.platform == "darwin" else ()), "-o", str(output),
    ]  # fmt: skip


def _compiler() -> list[str]:
    """``$CXX`` (which may hold options), or the machine's C++ compiler."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if sys.platform == "darwin" and (found is None or _is_stub(found)):
        raise BuildError("there is no C++ compiler on this Mac: xcode-select --install")
    if found is None:
        raise BuildError("there is no C++ compiler on this machine: apt install g++")
    return [found]


def _is_stub(compiler: str) -> bool:
    """Whether this is macOS's placeholder, which opens a dialog (``xcode-select(1)``)."""
    if Path(compiler).parent != Path("/usr/bin"):
        return False
    return subprocess.run(["xcode-select", "-p"], capture_output=True).returncode != 0
