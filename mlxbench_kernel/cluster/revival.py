"""Brings back a controller that was killed; the ranks come to it, under their ids.

What a rank needs is the same address with the same keys: its sockets try again ten times a
second by themselves. The ids are in a file that the old controller wrote.
"""

from __future__ import annotations

import time

import psutil

from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.machinery import Machinery, Progress
from mlxbench_kernel.errors import ClusterError

START_SECONDS = 15.0
RANKS_SECONDS = 8.0
ASK_SECONDS = 1.0
LOOK_SECONDS = 0.1


class Revival:
    """One attempt to bring a controller back.

    Parameters
    ----------
    machinery
        Its controller is gone, or is there again after an attempt that was broken off.
    progress
        Called with the fraction done and a text.
    """

    def __init__(self, machinery: Machinery, progress: Progress | None) -> None:
        self._machinery = machinery
        self._progress = progress or (lambda done, text: None)

    def run(self) -> tuple[BenchClient, list[int]]:
        """Do it.

        Returns
        -------
        client
            A new client of the cluster.
        silent
            Ranks that did not come back: their process has ended, or their host is off.

        Raises
        ------
        ClusterError
            The controller does not start; says why and what to type.
        """
        machinery = self._machinery
        if not machinery.controller_running():
            self._progress(0.0, "starting the controller again")
            machinery.bring_controller_back()
        self._wait_for_controller()
        self._progress(0.4, "connecting")
        client = machinery.connect(START_SECONDS)
        try:
            ended = machinery.ended()
            client.ended.update(ended)
            for rank in ended:  # while there was nobody to be told
                client.unregister(rank)
            silent = self._wait_for_ranks(client, set(range(len(machinery.plans))) - set(ended))
            self._forget(client, set(ended))
        except BaseException:
            client.close(linger=0)
            raise
        self._progress(1.0, "back")
        return client, sorted({*silent, *ended})

    def _wait_for_controller(self) -> None:
        """Wait until the controller listens: a client of one that cannot start waits in vain."""
        address = self._machinery.address()
        port = int(address.rsplit(":", 1)[1])
        deadline = time.monotonic() + START_SECONDS
        while not self._connections(port, psutil.CONN_LISTEN):
            if not self._machinery.controller_running() or time.monotonic() > deadline:
                raise ClusterError(
                    f"the controller does not come back at {address}, where the ranks look for "
                    "it: %mlx_dist heal tries again, %mlx_dist restart starts all ranks anew\n"
                    f"{self._machinery.controller_log(10)}".rstrip()
                )
            time.sleep(LOOK_SECONDS)  # another process listens: no event of this one

    def _wait_for_ranks(self, client: BenchClient, ranks: set[int]) -> set[int]:
        """Wait until ranks are connected again; return those that are not."""
        mux, iopub = self._machinery.engine_ports()
        deadline = time.monotonic() + RANKS_SECONDS
        there: set[int] = set()
        second = 0  # connections to iopub, of ranks that have one beside that of their output
        while True:
            before = there
            answers = client.call("sample", sorted(ranks - there), ASK_SECONDS)
            there |= answers.keys()
            second += sum(each["published"] for each in answers.values())
            # Not the control channel alone: what is sent to a rank that is not connected yet is
            # lost. Looked at once more when all are, as the keys are still exchanged then.
            connected = (
                self._connections(mux) >= len(there)
                and self._connections(iopub) >= len(there) + second
            )
            self._progress(0.5 + 0.5 * len(there) / max(len(ranks), 1), f"{len(there)} ranks")
            if there == ranks == before and connected:
                return set()
            if time.monotonic() > deadline:
                return ranks - there
            time.sleep(LOOK_SECONDS)  # nor is what other processes connect

    def _forget(self, client: BenchClient, ended: set[int]) -> None:
        """See that nobody counts on ranks that ended: the controller remembers them, and may have
        been told too early."""
        deadline = time.monotonic() + ASK_SECONDS
        while (there := ended & set(client.ids)) and time.monotonic() < deadline:
            for rank in there:
                client.unregister(rank)
            time.sleep(LOOK_SECONDS)  # the controller's answer is no event of this process

    def _connections(self, port: int, status: str = psutil.CONN_ESTABLISHED) -> int:
        """How many connections to a port of the controller there are."""
        try:
            found = psutil.Process(self._machinery.controller.pid).net_connections("tcp")
        except psutil.Error:  # it has just ended
            return 0
        ours = [each for each in found if each.laddr and each.laddr.port == port]
        return sum(each.status == status for each in ours)
