"""Peak memory measured, as a share of what was predicted, on the default device.

    python tests/benchmarks/graph_peak.py

Each line is one model; its columns are the forward pass, forward and backward, and a step of Adam.
The last rows are of a size at which the memory matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parents[1]))
from graph_models import Case, convolutional, deeper_convolutional, llama, mlp

from mlxbench_kernel.graph import predict, read

MODELS: dict[str, Callable[[], Case]] = {
    "MLP": mlp,
    "convolutional": convolutional,
    "deeper convolutional": deeper_convolutional,
    "Llama, 4 × 256": llama,
    "Llama, 2 × 512": lambda: llama(layers=2, width=512, vocabulary=2000, batch=2),
    "Llama, 4 × 1024": lambda: llama(layers=4, width=1024, vocabulary=4000, batch=8),
}
ROUNDS = 3


def ratio(case: Case, part: str) -> float:
    """Measured over predicted, once kernels are compiled."""
    ratios = []
    for _ in range(ROUNDS):
        outputs = case.outputs(part)
        predicted = predict(read(outputs)).peak
        mx.synchronize()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(outputs)
        ratios.append((mx.get_peak_memory() - before) / predicted)
    return ratios[-1]


def main() -> None:
    print(f"{mx.default_device()!s:<24}{'forward':>10}{'backward':>10}{'step':>10}")
    for name, model in MODELS.items():
        case = model()
        parts = [ratio(case, part) for part in ("forward", "backward", "step")]
        print(f"{name:<24}" + "".join(f"{part:10.2f}" for part in parts), flush=True)


if __name__ == "__main__":
    main()
