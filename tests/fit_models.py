"""Small models of mlx-lm in folders, as its own converter leaves them, for the tests of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxbench_kernel.models.small import make_small_model

SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 8192,
    "head_dim": 32,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def folder_of(path: Path, model_type: str, *, bits: int = 0, files: int = 1, **other: Any) -> Path:
    """Write a model with random weights.

    Parameters
    ----------
    path
        The folder; made.
    model_type
        As mlx-lm calls it.
    bits
        Of quantized weights; 0 for none.
    files
        How many hold the weights; with an index.
    **other
        For the config.
    """
    return make_small_model(path, model_type, bits=bits, files=files, **{**SMALL, **other})
