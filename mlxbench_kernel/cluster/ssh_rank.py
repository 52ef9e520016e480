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

from ipyparallel.cluster.launcher import SSHEngineLauncher
from traitlets import List, Unicode

from mlxbench_kernel.cluster import ssh
from mlxbench_kernel.errors import ClusterError

MARK = "mlxbench-rank:"
KEYS_VARIABLE = "IPP_CONNECTION_INFO"  # that ipyparallel's cluster puts them into
START_SECONDS = 20.0
WATCH_SECONDS = 60.0  # of one connection; then another one goes on
LEAVE_SECONDS = 1.0
LOG_BYTES = 20_000

# The cluster's keys come over standard input and stay in a file that the rank removes: anything
# that runs as this user, and the user's own `ps`, shows an environment.
_START = """
import json, os, subprocess, sys
asked = json.loads(sys.stdin.buffer.read())
with open(asked["connection"], "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
    file.write(asked["keys"])
with open(asked["log"], "ab") as log:
    rank = subprocess.Popen(
        asked["command"], env={**os.environ, **asked["environment"]}, stdin=subprocess.DEVNULL,
        stdout=log, stderr=log, start_new_session=True,
    )
print("MARK" + json.dumps(rank.pid))
""".replace("MARK", MARK)

# A rank that ended says what it wrote; one that left by itself has removed its log.
_WATCH = """
import json, os, sys, time
pid, log, most, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
deadline = time.monotonic() + seconds
def gone():
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
ended = gone()
while not ended and time.monotonic() < deadline:
    time.sleep(0.2)
    ended = gone()
try:
    with open(log, errors="replace") as file:
        text = file.read()[-most:]
except OSError:
    text = ""
print("MARK" + json.dumps([ended, text]))
""".replace("MARK", MARK)


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
        ended = False
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
                ended, text = found
                if ended:
                    self._output = text
        stop_data = {"exit_code": None, "pid": self.pid, "identifier": self.identifier}
        try:
            self.loop.add_callback(lambda: self.notify_stop(stop_data))
        except RuntimeError:  # the loop is closed: nobody is interested any more
            pass

    async def stop(self) -> None:
        """Stop watching; the rank was asked to leave, or ended by `hosts.clean`."""
        if self._wait_thread is None:
            return  # it was never started
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._wait_thread.join, LEAVE_SECONDS)
        self._stop_waiting.set()
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
