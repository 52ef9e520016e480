"""What the stepper costs, and how fast it goes back and stops.

- Steps on two ranks, playing, default measuring on. Ours: ``stepper.run``. Reference: the same loop
  by hand, in the same ranks, on a model of its own; blocks of a few seconds alternate. The time
  from one step to the next counts, without the first and the last of a block: what plays begins
  once, which takes 4 ms, and the last eight steps before it stops are all kept. Twice: for a step
  of about 20 ms, and for one of about 2 ms. The learning rate is so small that nothing is learned:
  a CPU computes faster with zeros and slower with denormal numbers, of which a network that has
  learned all is full. After some pairs both models are made anew: where arrays lie in memory makes
  some percents. Twice the pairs of the other cases, as each says little. Both once more while a
  notebook listens: it and the controller share the cores with the ranks where there are no others.
- Back by one step, in the process that trains: seconds for a model of 1 MB and of 1 GB (target
  5 ms), and keeping a state (target 1 ms), also of a model of 1000 arrays. Their reference is the
  target.
- Pause: from the request to all ranks paused, less one step; the reference is the target, 50 ms.
- Comparing the parameters of all ranks every 50 steps, for 1 GB of them: seconds of a comparison
  as a share of 50 steps (target 3 %).
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from measure import Comparison, Report, arguments

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.remote.stepping import Stepping
from mlxbench_kernel.training import Stepper
from mlxbench_kernel.training.replicas import fingerprints
from mlxbench_kernel.training.watching import USUAL

BACK_SECONDS = 0.005
KEEP_SECONDS = 0.001
PAUSE_SECONDS = 0.05
# Seconds of a step, the target, and the network; the batch is such that a step takes so long.
CPU: Any = (
    (0.02, 1.01, {"width": 256, "depth": 3, "batch": 128, "steps": 160}),
    (0.002, 1.05, {"width": 96, "depth": 3, "batch": 48, "steps": 600}),
)
GPU: Any = (
    (0.02, 1.01, {"width": 4096, "depth": 6, "batch": 2048, "steps": 160}),
    (0.002, 1.05, {"width": 1024, "depth": 2, "batch": 1024, "steps": 600}),
)
PAIRS = 6  # with the same models
FIRST, LAST = 2, 10  # steps of a block that do not count

BY_HAND = """
import time
from mlxbench_kernel import Stepper
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training import keeping

def network():
    mx.random.seed(1)
    layers = [nn.Linear({width}, {width}) for _ in range({depth})]
    return nn.Sequential(*[each for layer in layers for each in (layer, nn.ReLU())])

x = mx.random.normal(({batch}, {width})) + rank
mx.eval(x)
loss_fn = lambda model, x: mx.mean(mx.square(model(x)))

hand, optimizer = network(), optim.Adam(1e-9)
optimizer.init(hand.trainable_parameters())
state = [hand.state, optimizer.state]
mx.eval(state)
value_and_grad = nn.value_and_grad(hand, lambda x: loss_fn(hand, x))

def by_hand():
    loss, gradients = value_and_grad(x)
    optimizer.update(hand, nn.average_gradients(gradients))
    mx.eval(loss, state)
"""

CALIBRATION = """
trees, PROTECTION.trees = PROTECTION.trees, {}
seconds = []
for _ in range(60):
    begin = time.perf_counter()
    by_hand()
    seconds.append(time.perf_counter() - begin)
PROTECTION.trees = trees
float(np.median(seconds))
"""

STEPPER = """
PROTECTION.trees = {{}}  # of a stepper before
begun = {{}}  # when the batch of a step was asked for: first, as it may be built a second time
def batch(n):
    begun.setdefault(n, time.perf_counter())
    return x

stepper = Stepper(network(), optim.Adam(1e-9), loss_fn, batch)
trees = dict(PROTECTION.trees)

def timed(ours):
    PROTECTION.trees = trees if ours else {{}}
    mx.eval(mx.distributed.all_sum(mx.array(0.0)))  # all ranks begin at once
    begun.clear()
    if ours:
        stepper.run({steps})
    else:
        for n in range({steps}):
            batch(n)
            by_hand()
    counted = sorted(begun)[{first}:-{last}]
    return (begun[counted[-1]] - begun[counted[0]]) / (counted[-1] - counted[0])

usual, keeping.SHORT = keeping.SHORT, 0.0
stepper.run(270)  # with each of its states, as many are kept as will ever be
keeping.SHORT = usual
stepper.run({steps})
timed(False)
"""

COMPARISON = """
seconds = {{True: [], False: []}}
for turn in range({pairs}):
    for way in (True, False) if turn % 2 else (False, True):
        seconds[way].append(timed(way))
PROTECTION.trees = trees
(seconds[True], seconds[False], stepper.sampling.interval)
"""


def run(cluster: Cluster, cell: str) -> dict[int, Any]:
    """What a cell gives on each rank."""
    result = cluster.execute(cell)
    if result.errors:
        sys.exit("\n".join(result.errors[min(result.errors)]["traceback"]))
    return cluster.results()


def calibrate(cluster: Cluster, shape: dict[str, int], about: float) -> None:
    """Choose the batch with which a step by hand takes about so many seconds on this machine."""
    for _ in range(6):
        took = max(run(cluster, BY_HAND.format(**shape) + CALIBRATION).values())
        if abs(took / about - 1) < 0.1:
            break
        shape["batch"] = max(1, round(shape["batch"] * min(max(about / took, 0.4), 2.5)))


def steps(report: Report, cluster: Cluster, pairs: int) -> None:
    """A step of some milliseconds, ours and by hand."""
    for about, target, shape in GPU if cluster.info.backend == "nccl" else CPU:
        calibrate(cluster, shape, about)
        cell = (BY_HAND + STEPPER).format(first=FIRST, last=LAST, **shape)
        found: dict[bool, list[Any]] = {False: [], True: []}
        for _ in range(-(-2 * pairs // PAIRS)):
            for listens in found:
                run(cluster, cell)
                notebook = listening(cluster) if listens else nullcontext()
                with notebook:
                    found[listens].append(run(cluster, COMPARISON.format(pairs=PAIRS)))
        for listens, rounds in found.items():
            ours, theirs = (
                np.concatenate([np.max([each[way] for each in r.values()], axis=0) for r in rounds])
                for way in (0, 1)
            )
            case = f"a step of {about * 1e3:g} ms, measured every {rounds[-1][0][2]} steps"
            case += ", while a dashboard listens" if listens else ""
            report.add(Comparison(case, "the loop by hand", list(ours), list(theirs), target))


@contextmanager
def listening(cluster: Cluster) -> Iterator[None]:
    """A notebook follows what is measured, as the dashboard does."""
    stepping = Stepping(cluster)
    stepping.watch(lambda: None)
    try:
        yield
    finally:
        stepping.close()


def pause(report: Report, cluster: Cluster, pairs: int) -> None:
    """From the request to all ranks paused."""
    stepping = Stepping(cluster)
    taken, step = [], []
    for _ in range(pairs):
        stepping.play()
        time.sleep(0.3)
        begin = time.perf_counter()
        stepping.pause()
        paused = time.perf_counter() - begin
        seconds = stepping.histories[0].last("main")["seconds"]
        step.append(seconds)
        taken.append(max(paused - seconds, 0.0))
    stepping.close()
    case = f"pause, beyond a step of {np.median(step) * 1e3:.1f} ms"
    report.add(Comparison(case, "50 ms", taken, [PAUSE_SECONDS] * pairs, 1.0))


def back(report: Report, pairs: int) -> None:
    """Back by a step, and keeping one."""
    for name, width, depth in (("1 MB", 512, 1), ("1 GB", 8192, 4), ("1000 arrays", 16, 500)):
        layers = [nn.Linear(width, width) for _ in range(depth)]
        model = nn.Sequential(*layers)

        def loss_fn(model: nn.Module, x: mx.array) -> mx.array:
            return mx.mean(mx.square(model(x)))

        batch = mx.ones((1, width))
        stepper = Stepper(
            model, optim.SGD(1e-6), loss_fn, [batch] * 1000, check=False, budget=4 << 30
        )
        stepper.run(3)
        seconds, kept, steps = [], [], []
        for _ in range(pairs):
            begin = time.perf_counter()
            stepper.advance()
            steps.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            stepper.keep()
            kept.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            stepper.back()
            seconds.append(time.perf_counter() - begin)
        report.add(
            Comparison(f"back by a step, {name}", "5 ms", seconds, [BACK_SECONDS] * pairs, 1.0)
        )
        report.add(
            Comparison(f"keeping a state, {name}", "1 ms", kept, [KEEP_SECONDS] * pairs, 1.0)
        )
        if name == "1 GB":
            parameters = [layer.weight for layer in layers]
            hashes = []
            for _ in range(pairs):
                begin = time.perf_counter()
                mx.eval(fingerprints(parameters))
                hashes.append(time.perf_counter() - begin)
            many = [USUAL * each for each in steps]
            case = f"comparing replicas of 1 GB every {USUAL} steps of batch 1"
            report.add(Comparison(case, f"{USUAL} steps", hashes, many, 0.03))
        del stepper, model, layers
        gc.collect()
        mx.clear_cache()


def main() -> None:
    parser = arguments(__doc__, 30)
    parser.add_argument("--backend", default="", help="of the two ranks, as nccl; ring without")
    options = parser.parse_args()
    report = Report(options.check)
    back(report, max(options.pairs // 3, 3))
    cluster = Cluster.up(2, seed=1, backend=options.backend)
    try:
        steps(report, cluster, options.pairs)
        pause(report, cluster, max(options.pairs // 3, 3))
    finally:
        cluster.down()
    report.leave()


if __name__ == "__main__":
    main()
