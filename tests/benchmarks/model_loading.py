"""Loading a language model: in time against mlx-lm, and in bytes by rank.

- On one rank. Ours: `models.load`. Reference: `mlx_lm.load`. Both in processes of their own, which
  have imported what they need; the weights are in the file system's cache for both. Target 1.1 ×.
- On n ranks, tensor parallel. Ours: the most bytes that a rank reads, as the operating system
  counts them (Linux only). Reference: the bytes of the parameters that it holds, which are the nth
  part of all those that mlx-lm splits (it leaves embeddings, the head and norms whole). Target
  1.05 ×: headers come on top. What part of all the weights that is, is printed too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Comparison, Report, arguments, by_turns

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.models.small import make_small_model

TARGET = 1.1
READ_TARGET = 1.05
SHAPE = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "head_dim": 64,
    "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 4096,
}  # fmt: skip

SCRIPT = """
import sys, time
import mlx.core as mx
import mlx_lm, mlx_lm.utils, mlx_lm.models.llama, transformers
from mlxbench_kernel.models import load
folder, ours = sys.argv[1], sys.argv[2] == "ours"
for number in range(2):  # the first one brings in the rest of what is imported
    begin = time.perf_counter()
    found = load(folder) if ours else mlx_lm.load(folder)
    seconds = time.perf_counter() - begin
    del found
    mx.clear_cache()
print(seconds)
"""

CELL = """
import psutil
from mlxbench_kernel.models import load
def read_bytes(shard):
    # psutil counts in what is written to a pipe too; of that there is little.
    before = psutil.Process().io_counters().read_chars
    nbytes = load({folder!r}, shard, group).nbytes
    mx.clear_cache()
    return psutil.Process().io_counters().read_chars - before, nbytes
read_bytes("tensor")  # modules are read as well
read_bytes("tensor")
"""


def make_model(folder: Path) -> Path:
    """A llama of about 130 MB."""
    return make_small_model(folder / "llama", files=4, **SHAPE)


def loading(folder: Path, side: str) -> float:
    """Seconds of loading in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, str(folder), side]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"model_loading.py: {side} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def weights_bytes(folder: Path) -> int:
    """Of the parameters in the files."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return int(index["metadata"]["total_size"])


def bytes_by_rank(folder: Path, size: int) -> list[tuple[int, int]]:
    """What each rank reads while it loads its share, and what it holds then."""
    cluster = Cluster.up(size)
    try:
        result = cluster.execute(CELL.format(folder=str(folder)))
        if result.errors:
            sys.exit("\n".join(result.errors[min(result.errors)]["traceback"]))
        found = cluster.results()
        return [found[rank] for rank in range(size)]
    finally:
        cluster.down()


def main() -> None:
    """Measure the time on one rank and the bytes on several."""
    parser = arguments(__doc__, pairs=9)
    parser.add_argument("-n", type=int, action="append", help="ranks; may be repeated (2 and 4)")
    options = parser.parse_args()
    report = Report(options.check)
    with tempfile.TemporaryDirectory() as place:
        folder = make_model(Path(place))
        whole = weights_bytes(folder)
        ours, theirs = by_turns(
            lambda: loading(folder, "ours"), lambda: loading(folder, "mlx-lm"), pairs=options.pairs
        )
        case = f"loading {whole / 1e6:.0f} MB on one rank"
        report.add(Comparison(case, "mlx_lm.load", ours, theirs, TARGET, size=whole))
        for size in options.n or [2, 4]:
            read, held = max(bytes_by_rank(folder, size))
            ratio = read / held
            met = ratio <= READ_TARGET
            case = f"bytes that a rank reads, {size} ranks"
            print(
                f"{case}: {ratio:.3f} × its parameters ({read / 1e6:.1f} MB against "
                f"{held / 1e6:.1f} MB, {read / whole:.3f} of all {whole / 1e6:.1f} MB), target "
                f"≤ {READ_TARGET:g} ×: {'met' if met else 'MISSED'}",
                flush=True,
            )
            if not met:
                report.missed.append(case)
    report.leave()


if __name__ == "__main__":
    main()
