"""A notebook's kernel is killed and started again: the ranks' cell is still there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from running import Recorded, until

from mlxbench_kernel.cluster import Cluster

NOTEBOOK = """
import sys, time
from mlxbench_kernel.cluster import Cluster
cluster = Cluster.up(2, keep=True)
cluster.execute("treasure = rank + 100\\nprint('first')")
sent = cluster.client.start_cells(sys.argv[1], [0, 1], lambda rank, message: None)
while not all(c[-1].messages and len(c) == 2 for c in cluster.history().values()):
    time.sleep(0.02)
print(cluster.id, flush=True)
time.sleep(600)
"""
CELL = """
import time
print('epoch 1')
display({'text/plain': 'a plot'}, raw=True)
while 'stop' not in globals():
    time.sleep(0.02)
print('the end')
"""


@pytest.fixture
def kept() -> Iterator[str]:
    """Id of a cluster whose notebook was killed while a cell was running."""
    notebook = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK, CELL], stdout=subprocess.PIPE, text=True
    )
    assert notebook.stdout is not None
    id = notebook.stdout.readline().strip()
    notebook.kill()
    notebook.wait()
    yield id
    if id in [info.id for info in Cluster.running()]:
        Cluster.attach(id).down()


def test_attach_finds_the_running_cell_and_the_next_one_waits(
    kept: str, recorded: Recorded
) -> None:
    cluster = Cluster.attach(kept)
    first, last = cluster.history()[1]
    assert first.messages == (("stream", {"name": "stdout", "text": "first\n"}),)
    assert not first.running and last.running and last.code == CELL
    assert [kind for kind, _ in last.messages] == ["stream", "display_data"]
    assert cluster.last_cell().keys() == {0, 1}
    assert all("time.sleep" in rank.state for rank in cluster.status())

    # The next cell is sent while that one runs; it ends it only by being sent after it.
    replies = cluster.client.start_cells("print(stop)", [0, 1], lambda rank, message: None)
    assert not any(reply.done() for reply in replies.values())
    cluster.interrupt()
    until(lambda: all(reply.done() for reply in replies.values()))
    cluster.execute("treasure", output=recorded)
    assert [recorded.text(rank) for rank in (0, 1)] == ["100", "101"]
    assert [cell.running for cell in cluster.history()[0]] == [False] * 4
    cluster.down()


def test_the_magic_shows_what_the_cell_has_put_out(
    kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "mlxbench_kernel")
    shell.run_line_magic("mlx_dist", f"attach {kept}")
    shown = capsys.readouterr().out
    assert "to ranks 0-1, still runs on ranks 0-1, the next cell waits for it:" in shown
    assert "epoch 1" in shown and "a plot" in shown and "the end" not in shown
    shell.run_line_magic("mlx_dist", "attach")
    again = capsys.readouterr().out
    assert kept in again and "epoch 1" not in again  # a list of clusters
    shell.run_line_magic("mlx_dist", "down")
