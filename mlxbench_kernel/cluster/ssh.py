"""Python code on other hosts: one ssh connection each, all at once, always with an end.

``ssh`` is the one on PATH, with the user's own configuration. It never asks for anything: a
host that would want a password or a yes is reported as one that does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from mlxbench_kernel.interrupts import held
from mlxbench_kernel.rank.files import CAUSES

CONNECT_SECONDS = 5
OLD = "mlxbench-old-python:"
TIMED_OUT = "timed out"  # as ssh says too
LONGEST_SECONDS = 120  # then the host itself ends what nobody waits for any more
# What a user's configuration may ask for a host and no command can live with.
OPTIONS = (
    "-T", "-o", "BatchMode=yes", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes",
    # A cable that is pulled is noticed after 9 s, and no ssh waits for it for ever.
    "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3",
)  # fmt: skip

# The source comes first on standard input, then its data. The current folder is taken off the
# path: on a host it is the user's home, and a json.py there would be imported.
_START = (
    "import sys; sys.version_info >= (3, 11) or sys.exit('OLD' + sys.version.split()[0]); "
    f"import signal; signal.alarm({LONGEST_SECONDS}); n = int(sys.argv.pop(1)); "
    "sys.path[:] = [p for p in sys.path if p]; exec(sys.stdin.buffer.read(n).decode())"
).replace("OLD", OLD)


@dataclass(frozen=True)
class Call:
    """Python code to run on one host.

    Attributes
    ----------
    host
        Name that ``ssh`` connects to.
    local
        Whether it is this machine, where no ssh is needed.
    python
        Path of the Python there.
    source
        What it runs.
    arguments
        ``sys.argv[1:]`` of the source.
    data
        What the source finds on its standard input.
    """

    host: str
    local: bool
    python: str
    source: str
    arguments: tuple[str, ...] = ()
    data: bytes = b""

    def command(self) -> list[str]:
        """The command line that runs it."""
        size = len(self.source.encode())
        command = [self.python, "-c", _START, str(size), *self.arguments]
        return command if self.local else ssh_command(self.host, shlex.join(command))


@dataclass(frozen=True)
class Answer:
    """How a call ended.

    Attributes
    ----------
    code
        Exit status; None when time was up, or the program could not be started.
    stdout, stderr
        What was written.
    """

    code: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Failure:
    """Why a host cannot be used.

    Attributes
    ----------
    host
        Its name in the hostfile.
    cause
        What is wrong.
    fix
        What to type or to look at, "" where the cause says all that is known.
    """

    host: str
    cause: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.host} {self.cause}: {self.fix}" if self.fix else f"{self.host}: {self.cause}"


def ssh_command(name: str, command: str) -> list[str]:
    """An ssh command line that never asks and never takes the name for an option."""
    timeout = ("-o", f"ConnectTimeout={CONNECT_SECONDS}")
    return ["ssh", *OPTIONS, *timeout, "--", name, command]


def run(calls: Sequence[Call], timeout: float) -> list[Answer]:
    """Run all calls at once; their answers in the same order.

    Parameters
    ----------
    calls
        At most one per host, or they wait for one another in sshd's ``MaxStartups``.
    timeout
        Seconds for all of them together; what still runs then is killed.
    """
    answers = dict(run_each(calls, timeout))
    return [answers[index] for index in range(len(calls))]


def run_each(calls: Sequence[Call], timeout: float) -> Iterator[tuple[int, Answer]]:
    """Run all calls at once; each answer with its index as soon as it is there."""
    deadline = time.monotonic() + timeout
    running: dict[int, subprocess.Popen[bytes]] = {}
    failed: dict[int, Answer] = {}
    with ThreadPoolExecutor(max(len(calls), 1)) as pool:
        try:
            with held():  # a Ctrl-C here would leave a process that nobody knows
                for index, call in enumerate(calls):
                    process = start(call)
                    if isinstance(process, Answer):
                        failed[index] = process
                    else:
                        running[index] = process
            pending = {
                pool.submit(finish, process, calls[index], deadline): index
                for index, process in running.items()
            }
            yield from failed.items()
            while pending:
                for done in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(done), done.result()
        finally:  # also when nobody waits for the rest, or the user interrupts
            for process in running.values():
                kill(process)


def start(call: Call) -> subprocess.Popen[bytes] | Answer:
    """Start a call in a process group of its own; the answer at once where that fails."""
    try:
        return subprocess.Popen(
            call.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", f"{error.filename}: {error.strerror}")


def finish(process: subprocess.Popen[bytes], call: Call, deadline: float) -> Answer:
    """Wait for a started call until `deadline` (`time.monotonic`); then it is killed."""
    try:
        sent = call.source.encode() + call.data
        out, err = process.communicate(sent, max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        kill(process)
        close(process)
        return Answer(None, "", TIMED_OUT)
    return Answer(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def said(text: str, mark: str) -> Any:
    """The JSON that follows the mark in an answer, None without; a login shell may say more."""
    for line in text.splitlines():
        if line.startswith(mark):
            return json.loads(line.removeprefix(mark))
    return None


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that `start` made, with all it has started (``ProxyCommand``, for one)."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def close(process: subprocess.Popen[bytes]) -> None:
    """Close the streams of a process that has ended."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # what was still to be written has no reader any more
                pass


def explain(call: Call, answer: Answer) -> Failure:
    """Why a call failed.

    The exit status 255 is ssh's own (ssh(1)), anything else the remote command's. The texts
    are those of OpenSSH (``sshconnect.c``, ``sshconnect2.c``, ``ssh_api.c`` of 9.2).
    """
    name = "this machine" if call.local else call.host
    python, code, stderr = call.python, answer.code, answer.stderr
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    silent = f"signal {-code}" if code is not None and code < 0 else "no reason given"
    tail = lines[-1] if lines else silent
    if old := re.search(OLD + r"(\S+)", stderr):
        cause = f"has Python {old[1]} at {python}, and mlxbench needs 3.11 or newer"
        return Failure(name, cause, "--python PATH names another one there")
    if code in (126, 127) or (code not in (0, 255) and _names_no_program(python, tail)):
        cause = f"has no Python at {python}"
        return Failure(name, cause, "--python PATH names the one to use there")
    if code is None and tail != TIMED_OUT:
        return Failure(name, f"cannot start {tail}")
    if code not in (None, 255) and (disk := _disk(name, tail)):
        return disk
    if code not in (None, 255):
        return Failure(name, f"{python} failed: {tail}")
    if changed := re.search(r"Host key for (\S+) has changed", stderr):
        fix = f"if that is right, ssh-keygen -R {shlex.quote(changed[1])}"
        return Failure(name, "has another key than before", fix)
    for text, (cause, fix) in _CAUSES.items():
        if text in stderr:
            return Failure(name, cause, fix.format(name=shlex.quote(name)))
    return Failure(name, f"ssh failed: {tail}")


def _names_no_program(python: str, line: str) -> bool:
    """Whether a shell or the system says that `python` is not there (tcsh exits with 1)."""
    return python in line and bool(re.search(r"not found|No such file|Not a directory", line))


def _disk(host: str, line: str) -> Failure | None:
    """What a disk there did not take, from the last line of Python's traceback."""
    found = re.search(r"\[Errno \d+\] ([^:]+)(?:: '(.*)')?$", line)
    if found is None:
        return None
    for number, (cause, fix) in CAUSES.items():
        if os.strerror(number) == found[1]:  # the same text on Linux and macOS, if not the number
            return Failure(host, f"cannot write {found[2] or 'a file'}, {cause}", fix)
    return None


_AWAKE = "is it awake and on this network?"
_CAUSES = {
    "Permission denied (": ("refuses the key", "ssh-copy-id {name}"),
    "Too many authentication failures": (
        "was offered too many keys",
        "name the right one as IdentityFile in ~/.ssh/config",
    ),
    "Host key verification failed": ("is not known yet", "ssh {name} once, and say yes"),
    "Could not resolve hostname": (
        "is not a name that can be found",
        "look at the hostfile and ~/.ssh/config",
    ),
    "Connection refused": (
        "refuses ssh",
        "on macOS turn Remote Login on (System Settings, Sharing)",
    ),
    TIMED_OUT: ("does not answer", _AWAKE),
    "No route to host": ("cannot be reached", _AWAKE),
    "Network is unreachable": ("cannot be reached", "is this machine on its network?"),
    "Host is down": ("cannot be reached", _AWAKE),
}
