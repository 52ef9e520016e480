"""What it costs to say what holds a rank's memory: 10 000 arrays within 200 ms.

Each case is a namespace with 10 000 arrays; the reference is the target itself. Run it in an
environment with the package and MLX: ``python tests/benchmarks/attribution.py [--check]``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from measure import Comparison, Report, arguments

from mlxbench_kernel import native
from mlxbench_kernel.memory import Holdings, attribute

ARRAYS = 10_000
TARGET = 0.2
NATIVE_TARGET = 0.05


def model_and_optimizer() -> dict[str, Any]:
    """3 334 parameters of 1 667 layers, with the two moments of each."""
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(ARRAYS // 6 + 1)])
    optimizer = optim.Adam(1e-3)
    optimizer.init(model.trainable_parameters())
    mx.eval(model, optimizer.state)
    return {"model": model, "optimizer": optimizer}


def one_list() -> dict[str, Any]:
    """All in one list, each seen under a second name too."""
    arrays = [mx.zeros(8) + number for number in range(ARRAYS // 2)]
    mx.eval(arrays)
    return {"arrays": arrays, "again": list(arrays)}


def lazy() -> dict[str, Any]:
    """Half of them wait to be evaluated, with three nodes each, for the other half."""
    arrays = [mx.zeros(8) + number for number in range(ARRAYS // 2)]
    mx.eval(arrays)
    return {"arrays": arrays, "losses": [(array * array).sum() for array in arrays]}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "a model and its optimizer": model_and_optimizer,
    "a list under two names": one_list,
    "lazy arrays": lazy,
}


def seconds(variables: dict[str, Any]) -> tuple[float, Holdings]:
    """Of one attribution, and what it found."""
    start = time.perf_counter()
    found = attribute(variables)
    return time.perf_counter() - start, found


def native_seconds(arrays: list[mx.array]) -> float:
    """Of the native part alone."""
    module = native.load()
    assert module is not None, native.reason()
    start = time.perf_counter()
    module.read_holdings(arrays, [0] * len(arrays), [2] * len(arrays), True)
    return time.perf_counter() - start


def main() -> None:
    """Measure all cases."""
    options = arguments(__doc__, pairs=30).parse_args()
    report = Report(options.check)
    for name, make in CASES.items():
        variables = make()
        _, found = seconds(variables)
        count = sum(shape is not None for shape in found.shapes)
        assert ARRAYS <= count < 1.1 * ARRAYS and not found.stopped, found.stopped
        ours = [seconds(variables)[0] for _ in range(options.pairs)]
        case = f"attribution of {count:,} arrays, {name}"
        report.add(Comparison(case, f"{TARGET * 1e3:g} ms", ours, [TARGET] * len(ours), 1.0))
    arrays = [mx.zeros(8) + number for number in range(ARRAYS)]
    mx.eval(arrays)
    ours = [native_seconds(arrays) for _ in range(options.pairs)]
    report.add(
        Comparison("its native part", "50 ms", ours, [NATIVE_TARGET] * len(ours), target=1.0)
    )
    report.leave()


if __name__ == "__main__":
    main()
