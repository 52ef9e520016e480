"""Seconds from a fault to a usable prompt, on two ranks.

Ours: a rank raises while the other waits for it; Ctrl-C in a collective that never ends; a rank is
killed and ``%mlx_dist heal`` brings it back. Each ends when a collective of both ranks has given
its value again. Reference of all three: what is left to do without us, which loses every variable,
``down`` and ``up`` to the same collective. All alternate in one run.

The targets are seconds, not ratios: the reference keeps nothing, so being as fast is no merit.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
from measure import Comparison, Report, arguments, by_turns

from mlxbench_kernel.cluster import Cluster

RANKS = 2
WORKS = "assert mx.distributed.all_sum(mx.array(1.0), group=group).item() == size"
BLOCKED = "if rank == 0:\n    mx.eval(mx.distributed.all_sum(mx.ones(4), group=group))"
RAISES = f"if rank:\n    raise ValueError\n{BLOCKED}"
SECONDS = {"a rank raises": 1.0, "Ctrl-C in a blocked collective": 1.0, "killed to healed": 10.0}


class Faults:
    """One cluster, on which the sides are run by turns."""

    def __init__(self) -> None:
        self.cluster = Cluster.up(RANKS)
        self._works()

    def _works(self) -> None:
        errors = self.cluster.execute(WORKS, timeout=30).errors
        if errors:
            sys.exit(f"faults.py: the ranks are not usable: {errors}")

    def raises(self) -> float:
        """Row 1 of the fault table, from sending the cell that raises."""
        begin = time.perf_counter()
        self.cluster.execute(RAISES)
        self._works()
        return time.perf_counter() - begin

    def interrupt(self) -> float:
        """Row 5, from Ctrl-C."""
        pressed: list[float] = []

        def press() -> None:
            while self.cluster.client.call("progress", [0], 2)[0]["running"] is None:
                pass
            pressed.append(time.perf_counter())
            psutil.Process().send_signal(signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        try:
            self.cluster.execute(BLOCKED)
        except KeyboardInterrupt:
            pass
        thread.join()
        self._works()
        return time.perf_counter() - pressed[0]

    def heal(self) -> float:
        """Row 6, from SIGKILL."""
        begin = time.perf_counter()
        psutil.Process(self.cluster.info.ranks[1].pid).kill()
        while 1 in self.cluster.client.living():
            time.sleep(0.005)
        self.cluster.heal()
        self._works()
        return time.perf_counter() - begin

    def restart(self) -> float:
        """The reference."""
        begin = time.perf_counter()
        self.cluster.down()
        self.cluster = Cluster.up(RANKS)
        self._works()
        return time.perf_counter() - begin


def main() -> None:
    """Measure all four by turns."""
    options = arguments(__doc__, pairs=9).parse_args()
    report = Report(options.check)
    faults = Faults()
    sides: list[Callable[[], float]] = [faults.raises, faults.interrupt, faults.heal]
    try:
        *ours, restarted = by_turns(*sides, faults.restart, pairs=options.pairs)
    finally:
        faults.cluster.down()
    for (case, target), seconds in zip(SECONDS.items(), ours, strict=True):
        beside = Comparison(case, "down and up", seconds, restarted, target)
        low, high = beside.interval
        median = float(np.median(seconds))
        print(
            f"{case}: {median:.2f} s, {beside.ratio:.2f} × {beside.reference} (95% of medians "
            f"{low:.2f} to {high:.2f}; {len(seconds)} pairs), target ≤ {target:g} s: "
            f"{'met' if median <= target else 'MISSED'}",
            flush=True,
        )
        if median > target:
            report.missed.append(case)
    report.leave()


if __name__ == "__main__":
    main()
