"""Plans against peaks that were measured while mlx-lm itself generated and trained."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from fit_models import folder_of
from mlx_lm.generate import generate_step
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from mlxbench_kernel import FitPlan
from mlxbench_kernel.memory.fit.collectives import Rank
from mlxbench_kernel.memory.fit.inference import generating

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, sliding": {
        "model_type": "llama",
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_hidden_layers": 3,
    },
    "qwen3": {"model_type": "qwen3"},
    "qwen3, 4 bits": {"model_type": "qwen3", "bits": 4, "num_hidden_layers": 3},
}
WITHIN = 0.1


def settled() -> int:
    """Bytes that are held once nothing is let go of any more.

    Threads of earlier tests, MLX's too, may hold arrays a little longer than these tests: what they
    let go of while something is measured would be missing in it.
    """
    before = -1
    while (held := mx.get_active_memory()) != before:
        before = held
        gc.collect()
        mx.synchronize()
        time.sleep(0.05)
    return held


def measured(folder: Path, run: Callable[[nn.Module], Any]) -> int:
    """The peak while the model is there and `run`; where nothing else was let go of meanwhile."""
    for _ in range(5):
        before = settled()
        mx.clear_cache()
        model, _ = load_model(folder)
        mx.reset_peak_memory()
        run(model)
        peak = mx.get_peak_memory()
        del model
        if settled() == before:
            return peak - before
    raise AssertionError("arrays of others come and go all the time")


@pytest.fixture(autouse=True)
def on_the_cpu() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize(
    ("name", "context"),
    [*((name, 300) for name in MODELS), ("llama, sliding", 2100)],  # more than a piece of a prompt
)
def test_generating(tmp_path: Path, name: str, context: int) -> None:
    folder = folder_of(tmp_path / "model", **MODELS[name])
    (row,) = FitPlan(folder, ["64GB"], context).rows

    def run(model: nn.Module) -> None:
        for _ in generate_step(mx.zeros(context - 2, mx.int32), model, max_tokens=2):
            pass

    assert row.need == pytest.approx(measured(folder, run), rel=WITHIN)


OTHERS: dict[str, dict[str, Any]] = {
    "latent attention": {
        "model_type": "deepseek_v3", "moe_intermediate_size": 256, "num_hidden_layers": 3,
        "num_key_value_heads": 8, "n_shared_experts": 1, "n_routed_experts": 8, "kv_lora_rank": 64,
        "q_lora_rank": 64, "qk_rope_head_dim": 16, "v_head_dim": 32, "qk_nope_head_dim": 32,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    },
    "experts, sinks, windows": {
        "model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2,
        "num_hidden_layers": 4, "intermediate_size": 256, "sliding_window": 128,
    },
    "state space": {
        "model_type": "mamba2", "num_heads": 16, "intermediate_size": 512, "state_size": 32,
        "layer_norm_epsilon": 1e-5, "conv_kernel": 4, "n_groups": 2, "use_bias": False,
        "use_conv_bias": True, "time_step_limit": [0.0, 1e9], "time_step_rank": "auto",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_caches_of_other_kinds_over_a_prompt_of_many_pieces(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "model", **OTHERS[name])
    context, piece = 256 * 5 + 60, 256
    need = generating(FitPlan(folder, ["1GB"]).source.model, Rank(0, 1), context, 1, piece)

    def run(model: nn.Module) -> None:
        prompt = mx.zeros(context - 2, mx.int32)
        for _ in generate_step(prompt, model, max_tokens=2, prefill_step_size=piece):
            pass

    assert need.total == pytest.approx(measured(folder, run), rel=WITHIN)


def test_a_model_that_is_there_already(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama")
    model, _ = load_model(folder)
    (given,), (stored,) = FitPlan(model, [10**9], 300).rows, FitPlan(folder, [10**9], 300).rows
    assert given == stored


@pytest.mark.parametrize(
    ("name", "mode", "batch"),
    [
        ("llama", "train", 1),
        ("llama, tied", "train", 3),
        ("qwen3", "lora", 3),
        ("qwen3, 4 bits", "lora", 1),
    ],
)
def test_training(tmp_path: Path, name: str, mode: str, batch: int) -> None:
    context = 48
    folder = folder_of(tmp_path / "model", **MODELS[name])
    (row,) = FitPlan(folder, ["64GB"], context, batch, mode, snapshots=0).rows

    def run(model: nn.Module) -> None:
        if mode == "lora":
            model.freeze()
            linear_to_lora_layers(model, 16, {"rank": 8, "dropout": 0.0, "scale": 20.0})
        data = _Texts([([each + 1] * (context + 1), 0) for each in range(batch)])
        arguments = TrainingArgs(
            batch_size=batch, iters=2, max_seq_length=context + 1,
            adapter_file=str(tmp_path / "adapters.safetensors"),
        )  # fmt: skip
        train(model, optim.Adam(1e-5), CacheDataset(data), args=arguments)

    assert row.need == pytest.approx(measured(folder, run), rel=WITHIN)


class _Texts(list[Any]):
    """What mlx-lm makes a dataset of."""

    def process(self, text: Any) -> Any:
        return text


def test_snapshots_are_states_of_what_changes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama")
    (two,) = FitPlan(folder, ["64GB"], 64, 1, "train").rows
    (none,) = FitPlan(folder, ["64GB"], 64, 1, "train", snapshots=0).rows
    assert none.snapshots == 0
    assert two.snapshots == 2 * (two.parameters + two.optimizer)
    assert two.need == none.need + two.snapshots
    (lora,) = FitPlan(folder, ["64GB"], 64, 1, "lora").rows
    assert 0 < lora.snapshots < two.snapshots / 10


def test_planning_takes_no_memory(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama")
    mx.random.seed(3)
    key = mx.array(mx.random.state[0]).tolist()
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for mode in ("infer", "lora", "train"):
        FitPlan(folder, ["64GB"] * 2, 300, mode=mode)
    assert mx.get_peak_memory() - before < 100_000
    assert mx.random.state[0].tolist() == key
