"""What watching memory at 10 Hz costs the ranks.

- A sample: processor time of a rank's process while it is watched and does nothing else, above what
  it takes without, for each sample; windows of some seconds alternate. The reference is the
  target, 0.4 ms. That is a rank whose memory does not change: it sends some samples at a time. The
  same where every sample is sent at once, as when memory changes, is told beside it.
- A step of about 20 ms on two ranks, watched, against the same unwatched; blocks alternate.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import psutil
from measure import Comparison, Report, arguments

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.memory.pushing import HOLD_SECONDS
from mlxbench_kernel.remote.memory import Memory

SAMPLE_SECONDS = 0.0004
WINDOW = 12.0  # seconds of one side: with what is asked every five seconds

SETUP = """
import time
from mlxbench_kernel.memory import pushing
from mlxbench_kernel.memory.record import RECORD
mx.random.seed(1)
layers = [nn.Linear(256, 256) for _ in range(3)]
model = nn.Sequential(*[each for layer in layers for each in (layer, nn.ReLU())])
optimizer = optim.Adam(1e-4)
optimizer.init(model.trainable_parameters())
x = mx.random.normal((128, 256)) + rank
state = [model.state, optimizer.state]
mx.eval(x, state)
value_and_grad = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x))))

def block(steps):
    mx.eval(mx.distributed.all_sum(mx.array(0.0)))
    begin = time.perf_counter()
    for _ in range(steps):
        loss, gradients = value_and_grad(x)
        optimizer.update(model, nn.average_gradients(gradients))
        mx.eval(loss, state)
    return (time.perf_counter() - begin) / steps

block(50)
"""


def run(cluster: Cluster, code: str) -> dict[int, float]:
    result = cluster.execute(code)
    if result.errors:
        sys.exit("\n".join(result.errors[min(result.errors)]["traceback"]))
    return cluster.results()


class Watched:
    """Turns watching on and off."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.memory = Memory(cluster)
        self.off()

    def on(self) -> None:
        self.memory = Memory(self._cluster)
        self.memory.watch(lambda: None)
        time.sleep(0.5)

    def off(self) -> None:
        self.memory.close()
        time.sleep(0.3)
        # Not even as slowly as for a notebook that may come back.
        run(self._cluster, "RECORD._asked, RECORD._period = float('inf'), 1e9")


def samples(report: Report, cluster: Cluster, watched: Watched, pairs: int) -> None:
    """Processor time of a sample."""
    pid = cluster.info.ranks[1].pid

    def used() -> float:
        if sys.platform == "linux":  # in nanoseconds: psutil has hundredths of a second
            return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system

    def spent() -> tuple[float, int]:
        ring = watched.memory.feed.ranks[1].ring
        before, first = used(), ring.taken
        time.sleep(WINDOW)
        return used() - before, ring.taken - first

    taken, at_once = [], []
    for turn in range(pairs):
        seconds, counts = {}, {}
        ways = ("not", "watched", "at once")
        for way in ways if turn % 2 else reversed(ways):
            (watched.off if way == "not" else watched.on)()
            hold = "0.0" if way == "at once" else repr(HOLD_SECONDS)
            run(cluster, f"pushing.HOLD_SECONDS = {hold}")
            seconds[way], counts[way] = spent()
        taken.append((seconds["watched"] - seconds["not"]) / counts["watched"])
        at_once.append((seconds["at once"] - seconds["not"]) / counts["at once"])
    run(cluster, f"pushing.HOLD_SECONDS = {HOLD_SECONDS!r}")
    case = f"a sample at 10 Hz ({1000 * np.median(taken):.2f} ms of processor time)"
    report.add(Comparison(case, "0.4 ms", taken, [SAMPLE_SECONDS] * pairs, 1.0))
    print(f"  where every sample is sent at once: {1000 * np.median(at_once):.2f} ms")


def steps(report: Report, cluster: Cluster, watched: Watched, pairs: int) -> None:
    """A step of a training, watched and not."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(pairs):
        for way in (True, False) if turn % 2 else (False, True):
            (watched.on if way else watched.off)()
            seconds[way].append(max(run(cluster, "block(60)").values()))
    case = f"a step of {1000 * np.median(seconds[False]):.1f} ms, watched at 10 Hz"
    report.add(Comparison(case, "the same unwatched", seconds[True], seconds[False], 1.005))


def main() -> None:
    options = arguments(__doc__, 20).parse_args()
    report = Report(options.check)
    cluster = Cluster.up(2, seed=1)
    try:
        run(cluster, SETUP)
        watched = Watched(cluster)
        samples(report, cluster, watched, max(options.pairs // 2, 3))
        steps(report, cluster, watched, options.pairs)
        watched.memory.close()
    finally:
        cluster.down()
    report.leave()


if __name__ == "__main__":
    main()
