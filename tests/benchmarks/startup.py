"""From nothing to the first finished ``all_sum``.

Ours: ``Cluster.up(n)``, then a cell with an ``all_sum``. Reference: an ipyparallel cluster
started with its defaults, then a ring made by hand on its engines. Each run has a process of
its own, and the clock starts after its imports.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from measure import Comparison, Report, arguments, by_turns

TARGET = 0.5
SUM = "assert mx.distributed.all_sum(mx.array(float(rank)), group=group).item() == {total}"


def ours(n: int) -> float:
    """Seconds until ``Cluster.up(n)`` has summed."""
    from mlxbench_kernel.cluster import Cluster

    begin = time.perf_counter()
    cluster = Cluster.up(n, backend="ring" if n > 1 else "")
    result = cluster.execute(SUM.format(total=sum(range(n))))
    seconds = time.perf_counter() - begin
    cluster.down()
    if result.errors:
        sys.exit(f"startup.py: the all_sum failed: {result.errors}")
    return seconds


def theirs(n: int) -> float:
    """Seconds until ipyparallel's engines have summed."""
    import mlx.core  # noqa: F401  (before the clock starts, as on our side)
    from reference import ipyparallel_client, join_ring

    begin = time.perf_counter()
    with ipyparallel_client(n) as client:
        sums = join_ring(client, n)
        seconds = time.perf_counter() - begin
    if sums != [sum(range(n))] * n:
        sys.exit(f"startup.py: the reference's all_sum gave {sums}")
    return seconds


SIDES = {"ours": ours, "theirs": theirs}


def in_a_fresh_process(side: str, n: int) -> Callable[[], float]:
    """A run of one side in a process of its own."""

    def run() -> float:
        command = [sys.executable, __file__, "--side", side, "-n", str(n)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.split()[-1])

    return run


def main() -> None:
    """Measure, or be one side of a measurement."""
    parser = arguments(__doc__, pairs=5)
    parser.add_argument("-n", type=int, action="append", help="ranks; may be repeated (2 and 8)")
    parser.add_argument("--side", choices=SIDES, help="do one run of one side")
    options = parser.parse_args()
    sizes = options.n or [2, 8]
    if options.side:
        print(SIDES[options.side](sizes[0]))
        return
    report = Report(options.check)
    for n in sizes:
        sides = (in_a_fresh_process(side, n) for side in SIDES)
        seconds, reference = by_turns(*sides, pairs=options.pairs)
        report.add(
            Comparison(
                f"{n} ranks up to the first all_sum",
                "ipyparallel.Cluster.start_and_connect_sync and ring",
                seconds,
                reference,
                TARGET,
            )
        )
    report.leave()


if __name__ == "__main__":
    main()
