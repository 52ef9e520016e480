"""256 MB to one local rank and back, as float32 and as bfloat16.

Ours: ``Cluster.push`` and ``Cluster.pull`` of an ``mx.array``. Reference: ``view.push`` and
``view.pull`` of an ipyparallel cluster of one engine, with a NumPy array of the same bytes
(NumPy has no bfloat16: uint16 stands for it).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ipyparallel
import mlx.core as mx
import numpy as np
from measure import Comparison, Report, arguments, by_turns
from numpy.typing import NDArray
from reference import ipyparallel_client

from mlxbench_kernel.cluster import Cluster

TARGET = 1.2
ENOUGH = 1.0
BYTES = 256_000_000
Sides = tuple[Callable[[], object], Callable[[], object]]
DTYPES = {"float32": (np.float32, mx.float32), "bfloat16": (np.uint16, mx.bfloat16)}


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """A run of `function`."""

    def run() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return run


def main() -> None:
    """Measure both directions for each dtype."""
    options = arguments(__doc__, pairs=7).parse_args()
    report = Report(options.check)
    cluster = Cluster.up(1)
    try:
        with ipyparallel_client(1) as client:
            for name, (stand_in, dtype) in DTYPES.items():
                buffer = np.random.default_rng(0).integers(0, 2**15, BYTES // 2, dtype=np.uint16)
                array = mx.array(buffer).view(dtype)
                mx.eval(array)
                for direction, ours, theirs in (
                    ("push", *pushes(cluster, client, array, buffer.view(stand_in))),
                    ("pull", *pulls(cluster, client)),
                ):
                    seconds, reference = by_turns(
                        timed(ours), timed(theirs), pairs=options.pairs, warm_up=2
                    )
                    report.add(
                        Comparison(
                            f"{direction} of {BYTES // 1_000_000} MB {name}",
                            f"ipyparallel's {direction} of NumPy",
                            seconds,
                            reference,
                            TARGET,
                            size=BYTES,
                            enough=ENOUGH,
                        )
                    )
                arrived = cluster.pull("array")[0]
                if arrived.dtype != dtype or not np.array_equal(
                    np.array(arrived.view(mx.uint16)), buffer
                ):
                    raise SystemExit(f"transfer.py: {name} did not come back as it went")
    finally:
        cluster.down()
    report.leave()


def pushes(
    cluster: Cluster, client: ipyparallel.Client, array: mx.array, buffer: NDArray[Any]
) -> Sides:
    """Both sides' push of the same bytes."""
    view = client[0]

    def theirs() -> None:
        view.push({"array": buffer}, block=True)
        client.purge_local_results("all")

    return lambda: cluster.push({"array": array}), theirs


def pulls(
    cluster: Cluster, client: ipyparallel.Client
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Both sides' pull of what was pushed."""
    view = client[0]

    def ours() -> None:
        mx.eval(cluster.pull("array"))

    def theirs() -> None:
        view.pull("array", block=True)
        client.purge_local_results("all")

    return ours, theirs


if __name__ == "__main__":
    main()
