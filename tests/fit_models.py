"""Small models of mlx-lm in folders, as its own converter leaves them, for the tests of plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

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
        How many hold the weights; of more than one there is an index.
    **other
        For the config.
    """
    config: dict[str, Any] = {"model_type": model_type, **SMALL, **other}
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    if bits:
        config["quantization"] = {"group_size": 64, "bits": bits}
        nn.quantize(model, **config["quantization"])
    weights = dict(tree_flatten(model.parameters()))
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if files == 1:
        mx.save_safetensors(str(path / "model.safetensors"), weights)
        return path
    names = [f"model-{n + 1:05}-of-{files:05}.safetensors" for n in range(files)]
    where = {name: names[number % files] for number, name in enumerate(weights)}
    for file in names:
        part = {name: each for name, each in weights.items() if where[name] == file}
        mx.save_safetensors(str(path / file), part)
    index = {"metadata": {}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path
