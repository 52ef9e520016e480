"""A LoRA step on two ranks: ``lm.finetune`` and its stepper, against mlx-lm's training loop.

Both sides tune the same model with random weights by the same batches in the same order. Ours is
driven as a notebook drives it: default measuring, curves and progress are heard all the time. The
references run ``mlx_lm.tuner.trainer.train``, which ``mlx_lm.lora`` calls, with mlx-lm's own
``iterate_batches``; under ``mlx.launch``, and in bare processes (`step.py` says why). Each run
starts its ranks afresh, and the sides alternate. A run's figure is the median of rank 0's times
from one step to the next, making the batch included, without the first steps.

With ``--backend nccl`` and a model of billions of parameters (``--config``) on GPUs.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from measure import Comparison, Report, arguments, by_turns
from step import DROPPED, RANKS, under_launch, without_launcher

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.remote.language_model import ModelOnRanks
from mlxbench_kernel.remote.tuning import finetune

TARGET = 1.02
SEED = 5
# Compiled, as mlx-lm's steps always are; ours by default on a GPU only.
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-5, "seed": SEED, "validate_every": 0, "compile": True,
}  # fmt: skip
CONFIG = {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512}
# The configuration of a model of 3.2 B parameters, for GPUs: as text for --config.
LARGE = {
    "hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "tie_word_embeddings": True,
}  # fmt: skip

REFERENCE = """
import contextlib
import io
import json
import time

import mlx.core as mx
import mlx.optimizers as optim
import mlx_lm
import numpy as np
from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train
from mlx_lm.tuner.utils import linear_to_lora_layers

world = mx.distributed.init(strict=True, backend={backend!r})
model, tokenizer = mlx_lm.load({folder!r})
with open({data!r}) as file:
    texts = [json.loads(line)["text"] for line in file]
end = tokenizer.eos_token_id
examples = [(tokenizer.encode(text) + [end], 0) for text in texts]
mx.random.seed({seed})
np.random.seed({seed})
model.freeze()
layers = min(16, len(model.layers))
linear_to_lora_layers(model, layers, {{"rank": 8, "scale": 20.0, "dropout": 0.0}})
began = []

class Enough(Exception):  # mlx-lm 0.32.2 ends with a collective that NCCL does not have
    pass

def noted(*arguments, **options):
    for batch in iterate_batches(*arguments, **options):
        yield batch
        began.append(time.perf_counter())
        if len(began) > {steps}:
            raise Enough

with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Enough):
    train(
        model, optim.Adam(1e-5), examples, iterate_batches=noted,
        args=TrainingArgs(
            batch_size={batch_size}, iters=10**9, steps_per_report=10**9,
            steps_per_save=10**9, adapter_file={adapters!r} + f"-{{world.rank()}}.safetensors",
        ),
    )
if world.rank() == 0:
    with open({file!r}, "w") as file:
        json.dump(np.diff(began).tolist(), file)
"""


def written(folder: Path, batch_size: int, length: int) -> Path:
    """Examples of one length, so that no step waits for another shape to be compiled."""
    generator = random.Random(0)
    letters = "abcdefghij klmno"
    lines = [
        json.dumps({"text": "".join(generator.choices(letters, k=length - 1))})
        for _ in range(batch_size * 8)
    ]
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def ours(folder: Path, data: Path, batch_size: int, steps: int, backend: str) -> float:
    """Seconds of a step of the stepper, driven from here."""
    cluster = Cluster.up(RANKS, backend=backend)
    try:
        lm = ModelOnRanks.load(folder, "data", cluster=cluster)
        made = finetune(lm, data, batch_size=batch_size, **OPTIONS)
        made.stepping.run(steps)
        made.stepping.wait()
        history = made.stepping.histories[0]
        ended = history.series("main", "elapsed", points=10**6)[1]
        made.stepping.close()
    finally:
        cluster.down()
    return float(np.median(np.diff(ended)[DROPPED:]))


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--steps", type=int, default=100, help="of a run (100)")
    parser.add_argument("--batch-size", type=int, default=8, help="of both ranks together (8)")
    parser.add_argument("--length", type=int, default=64, help="tokens of an example (64)")
    parser.add_argument("--backend", default="ring", help="of the ranks (ring)")
    parser.add_argument("--dtype", default="float32", help="of the weights (float32)")
    parser.add_argument(
        "--config", type=json.loads, default=CONFIG, help=f"of the model; 3 B: {json.dumps(LARGE)}"
    )
    options = parser.parse_args()
    if options.steps <= DROPPED + 1:
        sys.exit(f"lora_step.py: the first {DROPPED} steps do not count: type --steps 100")
    report = Report(options.check)
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        folder = make_small_model(
            here / "model", dtype=getattr(mx, options.dtype), **options.config
        )
        data = written(here / "data", options.batch_size, options.length)
        file, script = here / "seconds.json", here / "reference.py"
        script.write_text(
            REFERENCE.format(
                backend=options.backend,
                folder=str(folder),
                data=str(data / "train.jsonl"),
                seed=SEED,
                batch_size=options.batch_size,
                steps=options.steps,
                adapters=str(here / "adapters"),
                file=str(file),
            )
        )
        seconds = by_turns(
            lambda: ours(folder, data, options.batch_size, options.steps, options.backend),
            lambda: under_launch(script, file, options.backend),
            lambda: without_launcher(script, file, options.backend),
            pairs=options.pairs,
            warm_up=0,
        )
    case = f"a LoRA step of {options.batch_size} × {options.length} tokens on {RANKS} ranks"
    for name, theirs in zip(("mlx.launch", "bare processes"), seconds[1:], strict=True):
        report.add(Comparison(case, f"mlx-lm's train, {name}", seconds[0], theirs, TARGET))
    report.leave()


if __name__ == "__main__":
    main()
