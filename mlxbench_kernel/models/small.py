"""A small model with random weights in the files of a real one: to try things, and for tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank import frozen

CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
END = "<|end|>"
SPECIAL = (END, "<|user|>", "<|assistant|>", "<|system|>")
VOCABULARY = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_small_model(
    folder: str | os.PathLike[str],
    model_type: str = "llama",
    *,
    seed: int = 0,
    bits: int = 0,
    files: int = 1,
    dtype: mx.Dtype = mx.float32,
    **config: Any,
) -> Path:
    """Write a small model with random weights, as mlx-lm's converter would leave a real one.

    Its tokenizer has a token for each byte, so it reads and writes any text.

    Parameters
    ----------
    folder
        Made; an empty one may be there.
    model_type
        An architecture, as mlx-lm calls it: "llama", "qwen3", "qwen3_moe", ….
    seed
        Of the weights. The random state of this process is as before afterwards.
    bits
        Of quantized weights, in groups of 32; 0 for none.
    files
        That the weights are in; with an index.
    dtype
        Of the weights.
    **config
        For ``config.json``, as ``num_hidden_layers=2``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        Something is in the folder, or mlx-lm has no such architecture.
    """
    from mlx_lm.utils import _get_classes

    path = Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"there is something in {path}: give another folder")
    whole: dict[str, Any] = {
        "model_type": model_type,
        **CONFIG,
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": 256,
        **config,
    }
    try:
        model_class, arguments = _get_classes(whole)
    except ValueError as error:
        raise UsageError(f"mlx-lm has no architecture {model_type!r}: type llama") from error
    before = frozen.random_key()
    mx.random.seed(seed)
    model = model_class(arguments.from_dict(whole))
    model.set_dtype(dtype)
    if bits:
        whole["quantization"] = {"group_size": 32, "bits": bits}
        quantize(model, **whole["quantization"])
    flat: Any = tree_flatten(model.parameters())
    weights = dict(flat)
    mx.eval(weights)
    frozen.seed(before)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(whole, indent=1))
    _write_weights(path, weights, files)
    _write_tokenizer(path)
    return path


def _write_weights(path: Path, weights: dict[str, mx.array], files: int) -> None:
    if files == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
    place = {name: names[number * files // len(weights)] for number, name in enumerate(weights)}
    for file in names:
        part = {name: array for name, array in weights.items() if place[name] == file}
        mx.save_safetensors(str(path / file), part, metadata={"format": "mlx"})
    total = sum(array.nbytes for array in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_tokenizer(path: Path) -> None:
    """A byte-level BPE without merges, in the format of the library tokenizers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(symbols)}, []))
    byte_level: Any = pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(about, indent=1))
