"""Generating in a notebook, text and figures shown as they come, against mlx-lm in a script.

Ours: ``lm.generate`` on ranks that are up, as a cell calls it. Reference: mlx-lm's
``stream_generate`` with the same prompt and model (of two ranks: as ``mlx_lm.generate`` loads it
under ``mlx.launch``), printing each token into a pipe. It runs in bare processes that stay, since
``mlx.launch`` keeps a core busy (see step.py), and which wait for a line meanwhile.

- Seconds from the first token that is shown to the end of the call; at most 1/0.98 ×, which is
  tokens per second of at least 0.98 ×.
- Seconds from the call to the first token that is shown; at most 20 ms more.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from measure import Comparison, Report, arguments
from model_loading import make_model
from reference import free_addresses

from mlxbench_kernel import LanguageModel
from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.remote.language_model import Generated
from mlxbench_kernel.widgets.generated import LiveText

RATE = 1 / 0.98
FIRST_SECONDS = 0.020
PROMPT = "The quick brown fox jumps over the lazy dog."

SCRIPT = """
import json, os, sys, time
import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.utils import sharded_load
folder, prompt, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
if "MLX_RANK" in os.environ:
    group = mx.distributed.init(strict=True, backend="ring")
    model, tokenizer = sharded_load(folder, None, group)
    rank = group.rank()
else:
    model, tokenizer = load(folder)
    rank = 0
for line in sys.stdin:
    begin, first, count = time.perf_counter(), 0.0, 0
    for each in stream_generate(model, tokenizer, prompt, max_tokens=tokens):
        if rank == 0:
            print(json.dumps(each.text), flush=True)
        first = first or time.perf_counter()
        count += 1
    print(json.dumps([first - begin, time.perf_counter() - first, count]), flush=True)
"""

Timed = tuple[float, float]  # seconds to the first token, and from there to the end


class MLXLM:
    """mlx-lm in processes of its own.

    Parameters
    ----------
    folder, size, tokens
        Of the model, ranks, tokens to generate.
    place
        A folder for what the ranks read.
    """

    def __init__(self, folder: Path, size: int, tokens: int, place: Path) -> None:
        script = place / "generate.py"
        script.write_text(SCRIPT)
        hosts = place / "hosts.json"
        hosts.write_text(json.dumps(free_addresses(size)))
        self._ranks = []
        for rank in range(size):
            own = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if size > 1 else {}
            command = [sys.executable, str(script), str(folder), PROMPT, str(tokens)]
            self._ranks.append(
                subprocess.Popen(
                    command, env={**os.environ, **own}, text=True, bufsize=1,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
            )  # fmt: skip
        self._tokens = tokens

    def run(self) -> Timed:
        """One generation on all of them; rank 0's seconds."""
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
        found = [self._end(rank) for rank in self._ranks]
        return found[0]

    def _end(self, rank: subprocess.Popen[str]) -> Timed:
        assert rank.stdout is not None
        for line in rank.stdout:
            told: Any = json.loads(line)
            if isinstance(told, list):
                first, rest, count = told
                if count < self._tokens:
                    sys.exit(f"generation.py: mlx-lm stopped after {count} tokens")
                return first, rest
        sys.exit("generation.py: a rank of mlx-lm has failed, see above")

    def close(self) -> None:
        """End them."""
        for rank in self._ranks:
            rank.kill()
            rank.wait()


def in_notebook(lm: LanguageModel, tokens: int) -> Timed:
    """One generation, as a cell has it."""
    text = LiveText()
    first: list[float] = []

    def draw(found: Generated, status: str) -> None:
        text.draw(found, status)
        if not first and found.figures:
            first.append(time.perf_counter())

    begin = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        made = lm.generate(PROMPT, tokens, draw=draw)
    end = time.perf_counter()
    if made.figures["tokens"] < tokens:
        sys.exit(f"generation.py: it stopped after {made.figures['tokens']} tokens")
    return first[0] - begin, end - first[0]


def by_turns(ours: Callable[[], Timed], theirs: Callable[[], Timed], pairs: int) -> list[Any]:
    """Both sides by turns, after two rounds that do not count: of each, its runs."""
    sides: list[list[Timed]] = [[], []]
    for turn in range(pairs + 2):
        for side in (0, 1) if turn % 2 else (1, 0):
            taken = (ours, theirs)[side]()
            if turn > 1:
                sides[side].append(taken)
    return sides


def compare(report: Report, folder: Path, size: int, tokens: int, pairs: int, place: Path) -> None:
    """Both on so many ranks."""
    cluster = Cluster.up(size)
    try:
        with redirect_stdout(io.StringIO()):
            lm = LanguageModel.load(folder, "tensor" if size > 1 else "data", cluster=cluster)
        mlx_lm = MLXLM(folder, size, tokens, place)
        try:
            ours, theirs = by_turns(lambda: in_notebook(lm, tokens), mlx_lm.run, pairs)
        finally:
            mlx_lm.close()
    finally:
        cluster.down()
    where = f"{size} ranks, tensor parallel" if size > 1 else "one rank"
    rest = [[each[1] for each in side] for side in (ours, theirs)]
    report.add(Comparison(f"{tokens} tokens after the first, {where}", "mlx-lm", *rest, RATE))
    first = [each[0] for each in ours], [each[0] + FIRST_SECONDS for each in theirs]
    report.add(Comparison(f"the first token, {where}", "mlx-lm and 20 ms", *first, 1.0))


def main() -> None:
    """Measure on one rank and on two."""
    parser = arguments(__doc__, pairs=9)
    parser.add_argument("-n", type=int, action="append", help="ranks; may be repeated (1 and 2)")
    parser.add_argument("--tokens", type=int, default=128, help="to generate (128)")
    options = parser.parse_args()
    report = Report(options.check)
    InteractiveShell.instance()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        for size in options.n or [1, 2]:
            compare(report, model, size, options.tokens, options.pairs, Path(folder))
    report.leave()


if __name__ == "__main__":
    main()
