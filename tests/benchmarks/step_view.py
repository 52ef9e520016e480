"""What a redraw of the stepper's dashboard costs, while it plays, after many steps.

``python tests/benchmarks/step_view.py [STEPS]`` prints, for a run that is so long: the Python
time of a redraw (median, and the slowest of ten), and the bytes that go to the browser.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import ipywidgets

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_stepping import FakeStepping

from mlxbench_kernel.widgets.stepping import SLOW, StepperView

REDRAWS = 60
RANKS = 4


def measure(steps: int) -> None:
    """Print the figures of a run of so many steps, in two branches."""
    stepping = FakeStepping(size=RANKS, sampling=max(steps // 400, 1))
    stepping.take(steps // 2)
    stepping.branch("other")
    stepping.take(steps // 2)
    sent: list[int] = []
    send = ipywidgets.Widget._send

    def weigh(widget: Any, message: Any, buffers: Any = None) -> None:
        sent.append(len(str(message)) + sum(memoryview(each).nbytes for each in buffers or ()))
        send(widget, message, buffers)

    view = StepperView(stepping)
    view._redraws.close()
    began = time.perf_counter()
    view.redraw()
    first = time.perf_counter() - began
    ipywidgets.Widget._send = weigh
    stepping.change(playing=True, doing="playing")
    kinds: dict[str, list[tuple[float, int]]] = {"curves": [], "all": []}
    for number in range(REDRAWS):
        stepping.take(1)
        if number % 5 == 0:
            time.sleep(SLOW)
        sent.clear()
        began = time.perf_counter()
        left = view.redraw()
        kinds["curves" if left else "all"].append((time.perf_counter() - began, sum(sent)))
    ipywidgets.Widget._send = send
    view.close()
    print(f"{steps} steps, {RANKS} ranks: the first redraw takes {1000 * first:.1f} ms")
    for kind, found in kinds.items():
        times = sorted(1000 * took for took, _ in found)
        size = statistics.median(size for _, size in found)
        print(
            f"  {kind}: {statistics.median(times):.1f} ms (nine of ten within "
            f"{times[9 * len(times) // 10]:.1f} ms), {size / 1000:.1f} kB sent"
        )


if __name__ == "__main__":
    for steps in [int(each) for each in sys.argv[1:]] or [1000, 100_000]:
        measure(steps)
