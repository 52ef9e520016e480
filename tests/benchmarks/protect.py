"""What it costs to protect a model and its optimizer, in a training loop on two ranks.

Ours: the loop after ``protect(model=model, optimizer=optimizer)``, which keeps handles of all
arrays whenever ``mx.eval`` has completed. Reference: the same loop, in the same ranks, before
anything was protected; the two alternate step by step. The model has about 300 weights, so that
with Adam's two moments of each there are about 1000 arrays.

Also printed, without a target: microseconds of one such commit.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from measure import Comparison, Report, arguments

from mlxbench_kernel.cluster import Cluster

TARGET = 1.01
RANKS = 2

CELL = """
import time
import mlx.utils
from mlxbench_kernel.rank.protection import PROTECTION

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm({width})
        self.up, self.gate = nn.Linear({width}, {hidden}), nn.Linear({width}, {hidden})
        self.down = nn.Linear({hidden}, {width}, bias=False)
    def __call__(self, x):
        y = self.norm(x)
        return x + self.down(nn.silu(self.gate(y)) * self.up(y))

model = nn.Sequential(*[Block() for _ in range({blocks})])
optimizer = optim.Adam(1e-4)
optimizer.init(model.trainable_parameters())
x = mx.random.normal(({batch}, {width})) + rank
mx.eval(model.parameters(), optimizer.state, x)
value_and_grad = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x))))
state = [model.state, optimizer.state]
arrays = len(mlx.utils.tree_flatten(state))

def step():
    loss, grads = value_and_grad(x)
    optimizer.update(model, nn.average_gradients(grads))
    mx.eval(loss, state)

def timed(protected):
    PROTECTION.trees = trees if protected else {{}}
    mx.eval(mx.distributed.all_sum(mx.array(0.0)))  # all ranks begin at once
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin

protect(model=model, optimizer=optimizer)
trees = PROTECTION.trees
for _ in range(3):
    step()
seconds = {{True: [], False: []}}
for turn in range({pairs}):
    for way in (True, False) if turn % 2 else (False, True):
        seconds[way].append(timed(way))

PROTECTION.trees = trees
commits = []
for _ in range(50):
    step()
    PROTECTION.kept.pop()  # so that there is something new to keep
    evaluated = (model.parameters(), state)
    begin = time.perf_counter()
    PROTECTION.completed(evaluated)
    commits.append(time.perf_counter() - begin)
PROTECTION.trees = {{}}
found = [seconds[True], seconds[False], commits, arrays]
"""


def main() -> None:
    """Measure the step and the commit."""
    parser = arguments(__doc__, pairs=100)
    parser.add_argument("--blocks", type=int, default=55, help="blocks of the model (55)")
    parser.add_argument("--width", type=int, default=64, help="width of the model (64)")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch (64)")
    options = parser.parse_args()
    report = Report(options.check)
    code = CELL.format(
        blocks=options.blocks,
        width=options.width,
        hidden=4 * options.width,
        batch=options.batch,
        pairs=options.pairs,
    )
    cluster = Cluster.up(RANKS)
    try:
        result = cluster.execute(code)
        if result.errors:
            sys.exit(f"protect.py: the cell failed: {result.errors}")
        found: Any = cluster.pull("found", [0])[0]
    finally:
        cluster.down()
    ours, theirs, commits, arrays = found
    case = f"training step with {arrays} protected arrays on {RANKS} ranks"
    report.add(Comparison(case, "the same unprotected", ours, theirs, TARGET))
    print(f"one commit of {arrays} arrays: {1e6 * float(np.median(commits)):.0f} µs")
    report.leave()


if __name__ == "__main__":
    main()
