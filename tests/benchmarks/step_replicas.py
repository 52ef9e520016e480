"""How fast the parameters of a replica are fingerprinted.

Ours: `fingerprints` of 1 GB of parameters, 50 arrays of float32. Reference: ``mx.sum`` of each
of the same arrays, the least that reads them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from measure import Comparison, Report, arguments, by_turns

from mlxbench_kernel.training.replicas import fingerprints

TARGET = 1.0
ARRAYS = 50


def main() -> None:
    """Measure both."""
    parser = arguments(__doc__, pairs=20)
    parser.add_argument("--size", type=float, default=1.0, help="GB of parameters (1.0)")
    options = parser.parse_args()
    report = Report(options.check)
    elements = int(options.size * 1e9 / 4 / ARRAYS)
    arrays = []
    for _ in range(ARRAYS):
        arrays.append(mx.random.normal((elements // 1000, 1000)))
        mx.eval(arrays[-1])
    size = sum(array.nbytes for array in arrays)

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            mx.eval(work())
            return time.perf_counter() - begin

        return run

    ours, theirs = by_turns(
        timed(lambda: fingerprints(arrays)),
        timed(lambda: [mx.sum(array) for array in arrays]),
        pairs=options.pairs,
    )
    case = f"fingerprints of {size / 1e9:.2f} GB in {ARRAYS} arrays"
    report.add(Comparison(case, "mx.sum of each", ours, theirs, TARGET, size=size))
    report.leave()


if __name__ == "__main__":
    main()
