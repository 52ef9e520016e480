"""A cable that is moved: nothing is dropped, and the wait is shown."""

from __future__ import annotations

import re
import threading
import time

import machines
from running import Recorded

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.cluster.cells import CellResult

PAUSE_SECONDS = 20.0


class Watched(Recorded):
    """Output whose status line can be waited for."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted = wanted
        self.seen = threading.Event()

    def refresh(self, status: str) -> None:
        super().refresh(status)
        if re.search(self.wanted, status):
            self.seen.set()


def test_a_pause_of_the_network_costs_nothing_but_time(
    ranks_on_hosts: Cluster, namespaces: machines.Network
) -> None:
    cluster, lost = ranks_on_hosts, namespaces.machines[1]
    cluster.execute("kept = mx.arange(4) + rank")
    output = Watched(rf"rank 1 is silent for \d+ s \({lost.name}\)")
    results: list[CellResult] = []
    code = "total = mx.distributed.all_sum(kept, group=group)\nmx.eval(total)\ntotal.tolist()"
    cell = threading.Thread(target=lambda: results.append(cluster.execute(code, output=output)))
    namespaces.cut(lost)
    began = time.monotonic()
    cell.start()
    try:
        assert output.seen.wait(PAUSE_SECONDS)
        (first, *_) = (status for status in output.statuses if "silent" in status)
        assert int(re.findall(r"silent for (\d+) s", first)[0]) <= 5
        states = {rank.rank: rank.state for rank in cluster.status()}
        assert states[1].startswith("silent for ") and "busy" in states[0]
        time.sleep(began + PAUSE_SECONDS - time.monotonic())  # the row's fault is its duration
    finally:
        namespaces.mend(lost)
    cell.join()
    assert results[0].errors == {}
    assert [output.text(rank) for rank in range(3)] == ["[3, 6, 9, 12]"] * 3
    assert cluster.client.ids == [0, 1, 2]
    kept = cluster.pull("kept")
    assert [kept[rank].tolist()[0] for rank in range(3)] == [0, 1, 2]
    # TCP tries each connection again after as long as it has waited already.
    assert cluster.client.call("sample", [0, 1, 2], 2 * PAUSE_SECONDS).keys() == {0, 1, 2}
    assert {rank.state for rank in cluster.status()} == {"idle"}
