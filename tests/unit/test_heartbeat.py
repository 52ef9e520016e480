"""The controller's heartbeat ends with it, however Python starts processes."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

PARENT = """
import multiprocessing, sys, time
from mlxbench_kernel.cluster.heartbeat import beat
if __name__ == "__main__":
    here = "tcp://127.0.0.1:*"
    urls = dict(ping_url=here, pong_url=here, monitor_url="tcp://127.0.0.1:9")
    child = multiprocessing.get_context(sys.argv[1]).Process(target=beat, kwargs=urls, daemon=True)
    child.start()
    print(child.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_ends_with_its_parent(method: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, method], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
