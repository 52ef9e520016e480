"""A training step with 100 collectives, and a collective alone, through the group of a rank.

Three rings among the same ranks take turns, step by step in the same processes, so that nothing
but the group differs; what polling and the cell cost is in ``step.py``, where the reference is a
process without either.

- the group of a rank as it is: wrapped ``mx.distributed``, log, and a thread of its own for
  MLX's ring, which can be left when it hangs (`Lanes` in ``native/group.h``);
- the same without that thread: what the *log* costs;
- reference: MLX's own group, used through MLX's own functions.

Also printed, without a target: microseconds that a collective of four bytes takes when nothing
else happens. There the hop to that thread and back shows, which a step hides between others.
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
import json, os, sys, tempfile, time
from mlxbench_kernel import native
from mlxbench_kernel.lines import calling_line
from mlxbench_kernel.rank.collectives import GROUP

module = native.load()
if module is None:
    raise RuntimeError("needs the native module: python -m mlxbench_kernel.native")

def ring(hosts):
    module.forget_backends()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(hosts, file)
        file.flush()
        os.environ["MLX_HOSTFILE"] = file.name
        made = module.init("ring")
    del os.environ["MLX_HOSTFILE"]
    return made

raw = ring({hosts[0]})
logged = module.lasting(ring({hosts[1]}), [], False)

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

def all_sum_logged(x, group):
    site = sites.get(line := calling_line(sys._getframe(1)).text)
    if site is None:
        site = sites[line] = module.at(logged, line)
    return GROUP.original("all_sum")(x, group=site)

sites = {{}}
value_and_grad = nn.value_and_grad(model, loss_of)
ways = {{
    "ours": (mx.distributed.all_sum, group),
    "log": (all_sum_logged, None),
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
        for way in [*ways, *ways][turn % 3 : turn % 3 + 3]:
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
        hosts=[free_addresses(RANKS) for _ in range(2)],
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
    step = f"step with {options.layers} collectives on {RANKS} ranks"
    for case, way in (("the log in a", "log"), ("log and lane in a", "ours")):
        report.add(
            Comparison(
                f"{case} {step}",
                "MLX's own group",
                found["steps"][way],
                found["steps"]["raw"],
                TARGET,
            )
        )
    ours, log, raw = (1e6 / TINY * float(np.median(each)) for each in found["tinies"].values())
    print(f"a collective of 4 bytes: {ours:.1f} µs, log {log:.1f} µs, MLX's own {raw:.1f} µs")
    report.leave()


if __name__ == "__main__":
    main()
