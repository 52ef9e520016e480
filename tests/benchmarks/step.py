"""The quickstart's training step on two ranks, under the workbench and without it.

The network and the step are the quickstart's own cells, and the loop around them is one text:
ours runs it as a cell while the ranks' telemetry is polled, the references as a script. Each
run starts its ranks afresh, so that none of ours are there while a reference runs. A run's
figure is the median of rank 0's step times, without the first steps.

Two references. ``mlx.launch`` is what a user would type otherwise. But it keeps a core busy
while the ranks run (mlx 0.32.4: it waits in `select` for standard inputs that can always be
written to), which slows them where cores are scarce: beside it we look good without merit.
So the same script also runs in bare processes, which is what says whether the workbench
costs anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
from measure import Comparison, Report, arguments, by_turns
from reference import free_addresses

from mlxbench_kernel.cluster import Cluster, Hostfile, rendezvous

TARGET = 1.01
RANKS = 2
DROPPED = 30
TELEMETRY_SECONDS = 1.0
QUICKSTART = Path(__file__).parents[2] / "notebooks" / "00_quickstart.ipynb"
CELLS = ("network", "training-step")

# What a rank of mlxbench finds in place, for the script.
NAMES = """
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

group = mx.distributed.init(strict=True, backend="{backend}")
rank, size = group.rank(), group.size()
"""

LOOP = """
import json
import time

from sklearn.datasets import load_digits

digits = load_digits()
images = (digits.images[:1440, :, :, None] / 16).astype(np.float32)
labels = digits.target[:1440].astype(np.int32)
model, step = new_run()
seconds = []
for number in range({steps}):
    batch = np.arange(96 * number, 96 * (number + 1)) % len(images)
    mine = np.split(batch, size)[rank]
    begin = time.perf_counter()
    step(images[mine], labels[mine], True)
    seconds.append(time.perf_counter() - begin)
if rank == 0:
    with open({file!r}, "w") as file:
        json.dump(seconds, file)
"""


def training_code() -> str:
    """The network and the step of the quickstart, without the magic."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    sources = {cell.id: cell.source for cell in notebook.cells}
    return "\n".join(sources[each].removeprefix("%%mlx_dist\n") for each in CELLS)


def median_step(file: Path) -> float:
    """Median of the step times that rank 0 wrote, without the first steps, in seconds."""
    return float(np.median(json.loads(file.read_text())[DROPPED:]))


@contextmanager
def telemetry(cluster: Cluster) -> Iterator[None]:
    """Ask all ranks for their state all the time, as the notebook's widgets do."""
    over = threading.Event()

    def poll() -> None:
        while not over.wait(TELEMETRY_SECONDS):
            cluster.status()

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def under_workbench(code: str, file: Path, backend: str) -> float:
    """Seconds of a step in a cell."""
    cluster = Cluster.up(RANKS, backend=backend)
    try:
        with telemetry(cluster):
            result = cluster.execute(code)
    finally:
        cluster.down()
    if result.errors:
        sys.exit(f"step.py: the cell failed: {result.errors}")
    return median_step(file)


def under_launch(script: Path, file: Path, backend: str) -> float:
    """Seconds of a step in a script that ``mlx.launch`` started."""
    beside = str(Path(sys.executable).parent)
    launch = shutil.which("mlx.launch", path=os.pathsep.join([beside, os.environ["PATH"]]))
    command = [
        launch or "mlx.launch",
        "-n",
        str(RANKS),
        "--backend",
        backend,
        "--python",
        sys.executable,
    ]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True)
    if done.returncode or not file.exists():
        sys.exit(f"step.py: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return median_step(file)


def without_launcher(script: Path, file: Path, backend: str) -> float:
    """Seconds of a step in a script that runs in two processes and nothing else."""
    hosts = Hostfile.local(RANKS).hosts
    own_gpus = rendezvous.gpus(backend, hosts, [""] * RANKS)
    ranks = []
    for rank, given in enumerate(rendezvous.settings(backend, hosts, free_addresses(RANKS))):
        environment = {**os.environ, **given.variables, **own_gpus[rank]}
        for name, content in given.files.items():
            path = script.with_name(f"{name}-{rank}.json")
            path.write_text(json.dumps(content))
            environment[name] = str(path)
        ranks.append(subprocess.Popen([sys.executable, str(script)], env=environment))
    statuses = [rank.wait() for rank in ranks]
    if any(statuses):
        sys.exit("step.py: a rank without a launcher failed, see above")
    return median_step(file)


def main() -> None:
    """Measure the step on both sides."""
    parser = arguments(__doc__, pairs=9)
    parser.add_argument("--steps", type=int, default=300, help="steps in each run (300)")
    parser.add_argument("--backend", choices=("ring", "nccl"), default="ring", help="(ring)")
    options = parser.parse_args()
    backend = options.backend
    if options.steps <= DROPPED:
        parser.error(f"--steps {options.steps}: the first {DROPPED} do not count, give more")
    report = Report(options.check)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "training.py"
        ours, theirs = (Path(folder) / f"{side}.json" for side in ("ours", "theirs"))
        cells = training_code()
        cell = cells + LOOP.format(steps=options.steps, file=str(ours))
        names = NAMES.format(backend=backend)
        script.write_text(names + cells + LOOP.format(steps=options.steps, file=str(theirs)))
        workbench, *references = by_turns(
            lambda: under_workbench(cell, ours, backend),
            lambda: under_launch(script, theirs, backend),
            lambda: without_launcher(script, theirs, backend),
            pairs=options.pairs,
        )
    for name, seconds in zip(("mlx.launch", "bare processes"), references, strict=True):
        case = f"training step on {RANKS} ranks, {backend}"
        report.add(Comparison(case, name, workbench, seconds, TARGET))
    report.leave()


if __name__ == "__main__":
    main()
