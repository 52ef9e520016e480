"""A training step with 100 collectives, and a collective alone, through the group of a rank.

Ours: the lasting group, with its log, its lane and the wrapped ``mx.distributed``, in a cell that
the notebook looks after as it does always. Reference: a second ring of MLX's own among the same
ranks, used through MLX's own functions. The two alternate step by step in the same processes, so
that nothing but the group differs; what polling and the cell cost is in ``step.py``, where the
reference is a process without either.

Also printed, without a target: microseconds that a collective of four bytes takes on both sides
when nothing else happens. There the hop to the lane's thread and back shows, which a collective
of any size hides behind its own waiting.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from measure import Comparison, Report, arguments
from reference import free_addresses

from mlxbench_kernel.cluster import Cluster

TARGET = 1.01
RANKS = 2
TINY = 1000  # collectives of four bytes, one after another

# Weights from 64 kB to 1 MB, each averaged on its own; no bias, so a layer is one collective.
CELL = """
import json, os, tempfile, time
from mlxbench_kernel import native
from mlxbench_kernel.rank.collectives import GROUP

module = native.load()
module.forget_backends()
with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump({hosts}, file)
    file.flush()
    os.environ["MLX_HOSTFILE"] = file.name
    raw = module.init("ring")
del os.environ["MLX_HOSTFILE"]

widths = [128, 128, 256, 256, 512, 512, 256]
layers = [
    nn.Linear(widths[i % 7], widths[(i + 1) % 7], bias=False) for i in range({layers})
]
model = nn.Sequential(*[each for layer in layers for each in (layer, nn.relu)])
optimizer = optim.Adam(1e-4)
x = mx.random.normal(({batch}, 128)) + rank
mx.eval(model.parameters(), x)

def loss_of(x):
    return mx.mean(mx.square(model(x)))

value_and_grad = nn.value_and_grad(model, loss_of)
ways = {{
    "ours": (mx.distributed.all_sum, group),
    "raw": (GROUP.original("all_sum"), raw),
}}

def step(way):
    all_sum, group = ways[way]
    loss, grads = value_and_grad(x)
    grads = mlx.utils.tree_map(lambda grad: all_sum(grad, group=group) / size, grads)
    optimizer.update(model, grads)
    mx.eval(loss, model.state, optimizer.state)

def tiny(way):
    all_sum, group = ways[way]
    total = mx.array(0.0)
    for _ in range({tiny}):
        total = all_sum(total, group=group)
    mx.eval(total)

import mlx.utils

def by_turns(work, pairs, warm_up):
    seconds = {{way: [] for way in ways}}
    for turn in range(warm_up + pairs):
        for way in list(ways) if turn % 2 else list(ways)[::-1]:
            # All ranks begin at once: who waits for whom is not what is measured.
            mx.eval(ways["raw"][0](mx.array(0.0), group=raw))
            begin = time.perf_counter()
            work(way)
            if turn >= warm_up:
                seconds[way].append(time.perf_counter() - begin)
    return seconds

steps = by_turns(step, {pairs}, 5)
tinies = by_turns(tiny, 15, 2)
"""


def main() -> None:
    """Measure both and print."""
    parser = arguments(__doc__, pairs=100)
    parser.add_argument("--layers", type=int, default=100, help="collectives in a step (100)")
    parser.add_argument("--batch", type=int, default=32, help="rows of a batch (32)")
    options = parser.parse_args()
    report = Report(options.check)
    code = CELL.format(
        hosts=free_addresses(RANKS),
        layers=options.layers,
        batch=options.batch,
        tiny=TINY,
        pairs=options.pairs,
    )
    cluster = Cluster.up(RANKS)
    try:
        result = cluster.execute(code)
        if result.errors:
            sys.exit(f"collectives.py: the cell failed: {result.errors}")
        found: dict[str, Any] = cluster.pull(["steps", "tinies"], [0])[0]
    finally:
        cluster.down()
    report.add(
        Comparison(
            f"training step with {options.layers} collectives on {RANKS} ranks",
            "MLX's own group",
            found["steps"]["ours"],
            found["steps"]["raw"],
            TARGET,
        )
    )
    ours, raw = (1e6 / TINY * float(np.median(found["tinies"][way])) for way in ("ours", "raw"))
    print(f"a collective of 4 bytes: {ours:.1f} µs, MLX's own group {raw:.1f} µs")
    report.leave()


if __name__ == "__main__":
    main()
