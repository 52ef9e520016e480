"""One rank over ssh: started, watched and heard of without anything that could hang or complain.

Every connection is one of `ssh`: in a session of its own, so that an interrupted cell does not
end it, with an end, and silent where a host is off.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from ipyparallel.cluster.launcher import SSHEngineLauncher
from traitlets import List, Unicode

from mlxbench_kernel.cluster import ssh
from mlxbench_kernel.cluster.deaths import Death
from mlxbench_kernel.errors import ClusterError

MARK = "mlxbench-rank:"
KEYS_VARIABLE = "IPP_CONNECTION_INFO"  # that ipyparallel's cluster puts them into
START_SECONDS = 20.0
WATCH_SECONDS = 60.0  # of one connection; then another one goes on
LEAVE_SECONDS = 1.0
LOG_BYTES = 20_000
ENDED = "ended"  # file in the rank's folder with the exit status of its process

# The cluster's keys come over standard input and stay in a file that the rank removes: anything
# that runs as this user, and the user's own `ps`, shows an environment. A process stays beside
# the rank, asleep, until that has ended: only the one that started it learns how.
_START = """
import json, os, signal, subprocess, sys
asked = json.loads(sys.stdin.buffer.read())
with open(asked["connection"], "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
    file.write(asked["keys"])
reading, writing = os.pipe()
if os.fork() == 0:
    try:
        os.setsid()
        with open(asked["log"], "ab") as log:
            rank = subprocess.Popen(
                asked["command"], env={**os.environ, **asked["environment"]},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        os.write(writing, str(rank.pid).encode())
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    os.close(writing)
    status = rank.wait()
    try:
        with open(asked["ended"] + ".part", "w") as file:
            file.write(str(status))
        os.replace(asked["ended"] + ".part", asked["ended"])
    except OSError:
        pass
    os._exit(0)
os.close(writing)
pid = os.read(reading, 20)
if not pid:
    sys.exit(1)
print("MARK" + json.dumps(int(pid)))
""".replace("MARK", MARK)

_KEEP = """
import os, sys
with open(sys.argv[1], "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
    file.write(sys.stdin.read())
print("MARK1")
""".replace("MARK", MARK)

# A rank that ended says what it wrote, how it ended, and what was last seen of its memory; one
# that left by itself has removed all that.
_WATCH = """
import json, os, pathlib, sys, time
pid, log, most, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
folder = pathlib.Path(log).parent
deadline = time.monotonic() + seconds
def gone():
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
ended = gone()
while not ended and time.monotonic() < deadline:
    time.sleep(0.1)
    ended = gone()
def status():
    until = time.monotonic() + 0.3
    while folder.exists() and time.monotonic() < until:
        try:
            return int((folder / "ENDED").read_text())
        except OSError:
            time.sleep(0.02)
def seen():
    try:
        from mlxbench_kernel.rank import last_seen
        return last_seen.report(folder)
    except Exception:
        return None
try:
    with open(log, errors="replace") as file:
        text = file.read()[-most:]
except OSError:
    text = ""
death = [status(), seen()] if ended else [None, None]
print("MARK" + json.dumps([ended, text, *death]))
""".replace("MARK", MARK).replace("ENDED", ENDED)


def give_keys(plans: Sequence[dict[str, Any]], keys: str) -> None:
    """Put the cluster's keys where ranks look for them, and remove them, on their hosts.

    Raises
    ------
    ClusterError
        A host did not do it; says why.
    """
    calls = [
        ssh.Call(plan["ssh"], False, plan["python"], _KEEP, (plan["connection"],), keys.encode())
        for plan in plans
    ]
    for call, answer in zip(calls, ssh.run(calls, START_SECONDS), strict=True):
        if ssh.said(answer.stdout, MARK) is None:
            raise ClusterError(str(ssh.explain(call, answer)))


class SSHRankLauncher(SSHEngineLauncher):  # type: ignore[misc]
    """One rank on a host that was looked at before (`hosts.probe`)."""

    command = List(Unicode())
    connection = Unicode(help="Where the rank finds the controller's address and keys, once.")
    _output: str | None = None
    _watching: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the rank.

        Raises
        ------
        ClusterError
            The host did not do it; says why.
        """
        environment = self.get_env()
        asked = {
            "command": list(self.command),
            "connection": self.connection,
            "keys": environment.pop(KEYS_VARIABLE),
            "environment": environment,
            "log": self.remote_output_file,
            "ended": str(PurePosixPath(self.remote_output_file).with_name(ENDED)),
        }
        call = self._call(_START, (), json.dumps(asked).encode())
        (answer,) = ssh.run([call], START_SECONDS)
        pid = ssh.said(answer.stdout, MARK)
        if pid is None:
            raise ClusterError(str(ssh.explain(call, answer)))
        self.pid = pid
        self.notify_start({"host": self.location, "pid": pid})
        self._start_waiting()

    def _wait(self) -> None:
        """Watch the rank until it has ended, also over times when its host cannot be reached."""
        call = self._watch_call(WATCH_SECONDS)
        ended, code = False, None
        while not ended and not self._stop_waiting.is_set():
            process = ssh.start(call)
            if isinstance(process, ssh.Answer):  # no ssh here any more
                self._stop_waiting.wait(ssh.CONNECT_SECONDS)
                continue
            self._watching = process
            answer = ssh.finish(process, call, time.monotonic() + 2 * WATCH_SECONDS)
            found = ssh.said(answer.stdout, MARK)
            if found is None:
                self._stop_waiting.wait(1.0)
            else:
                ended, text, code, seen = found
                if ended:
                    self._output = text
                    self.parent.note_death(int(self.identifier), self.pid, Death(code, seen))
        # The nanny told it too, unless it was killed with its rank. Not when another process
        # is the rank by now.
        if ended and self.parent.launchers.get(self.identifier) is self:
            self.parent.tell_ended(int(self.identifier))
        stop_data = {"exit_code": code, "pid": self.pid, "identifier": self.identifier}
        try:
            self.loop.add_callback(lambda: self.notify_stop(stop_data))
        except RuntimeError:  # the loop is closed: nobody is interested any more
            pass

    def let_go(self) -> None:
        """Begin no other connection to the rank; what watches it now goes on to its end."""
        self._stop_waiting.set()

    async def stop(self) -> None:
        """Stop watching; the rank was asked to leave, or ended by `hosts.clean`."""
        if self._wait_thread is None:
            return  # it was never started
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._wait_thread.join, LEAVE_SECONDS)
        self.let_go()
        if self._watching is not None:
            ssh.kill(self._watching)
        await loop.run_in_executor(None, self._wait_thread.join)

    def get_output(self, remove: bool = False) -> str:
        """The end of the rank's log; why there is none where its host does not answer."""
        if self._output is None and self.state == "running" and not remove:
            call = self._watch_call(0.0)
            (answer,) = ssh.run([call], 2 * ssh.CONNECT_SECONDS)
            found = ssh.said(answer.stdout, MARK)
            if found is None:
                return f"(no log: {ssh.explain(call, answer)})"
            self._output = str(found[1])
        return self._output or ""

    def _watch_call(self, seconds: float) -> ssh.Call:
        arguments = (str(self.pid), self.remote_output_file, str(LOG_BYTES), str(seconds))
        return self._call(_WATCH, arguments)

    def _call(self, source: str, arguments: Sequence[str], data: bytes = b"") -> ssh.Call:
        return ssh.Call(self.location, False, self.remote_python, source, tuple(arguments), data)
