"""What a plan is made for: a model, or a folder of which nothing but headers is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.headers import read_config, read_headers
from mlxbench_kernel.memory.fit.stand_ins import bytes_of, copied

# What configs call the tokens of a context that their model is made for.
LONGEST = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "n_positions", "n_ctx")
_HALF = 2  # bytes of an element of a KV cache where nobody says


@dataclass(frozen=True)
class Source:
    """A model to be fitted.

    Attributes
    ----------
    name
        For those who look at the plan.
    model
        With stand-ins for its arrays; None where mlx-lm cannot build it.
    config
        ``config.json``; empty for a model that was given itself.
    parameters
        Bytes of all arrays of the model, or of all tensors in the files.
    missing
        Why there is no model, in one line; "" where there is one.
    """

    name: str
    model: Module | None
    config: dict[str, Any]
    parameters: int
    missing: str = ""

    @property
    def architecture(self) -> str:
        """What mlx-lm calls it, or the name of its class."""
        own = getattr(self.model, "model_type", None) or self.config.get("model_type")
        return str(own or type(self.model).__name__)

    @property
    def longest(self) -> int | None:
        """Tokens of a context that the model is made for; None where nobody says."""
        args = getattr(self.model, "args", None)
        config = text_config(self.config)
        for name in LONGEST:
            found = config.get(name) or getattr(args, name, None)
            if isinstance(found, int) and found > 0:
                return found
        return None

    def cache_bytes(self, context: int, batch: int) -> int | None:
        """Bytes of a KV cache by the usual fields of a config; None where they are not there."""
        config = text_config(self.config)
        heads: Any = config.get("num_attention_heads")
        layers: Any = config.get("num_hidden_layers")
        width: Any = config.get("head_dim")
        try:
            width = width or config["hidden_size"] // heads
            held: Any = config.get("num_key_value_heads") or heads
            return int(2 * layers * held * width * _HALF * context * batch)
        except (KeyError, TypeError, ZeroDivisionError):
            return None


def read_source(model_or_path: Any, trust_remote_code: bool = False) -> Source:
    """What a user gives for ``model_or_path``; nothing large is read or evaluated.

    Code that comes with a model runs only where it is trusted.

    Raises
    ------
    UsageError
        It is neither a module nor a folder with a model.
    """
    if isinstance(model_or_path, Module):
        model = copied(model_or_path)
        args = getattr(model, "args", None)
        name = str(getattr(args, "model_type", "") or type(model_or_path).__name__)
        return Source(name, model, {}, bytes_of(model_or_path))
    if not isinstance(model_or_path, (str, os.PathLike)):
        raise UsageError(
            f"FitPlan: a {type(model_or_path).__name__} is no model: give an mlx.nn.Module, or the "
            "folder of a model"
        )
    folder = _folder(os.fspath(model_or_path))
    config = read_config(folder)
    headers = read_headers(folder)
    built, missing = _built(folder, config, trust_remote_code)
    if built is None:
        stored = sum(tensor.nbytes for tensor in headers.values())
        return Source(folder.name, None, config, stored, missing)
    return Source(folder.name, built, config, bytes_of(built))


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise UsageError(f"FitPlan: {path} is a file: give the folder with its config.json")
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from mlx_lm import utils

        of_name: Any = utils.hf_repo_to_path

        try:
            return Path(of_name(path))  # of what was downloaded before; asks nobody
        except Exception:
            pass
    raise UsageError(
        f"FitPlan: there is no folder {path} and no downloaded model of that name: download it "
        "first, as mlx_lm.load does, or give the folder"
    )


def _built(folder: Path, config: dict[str, Any], trusted: bool) -> tuple[Module | None, str]:
    """The model as mlx-lm builds it, quantized as stored; or None and why not.

    ``mlx_lm.utils.load_model`` (0.32.2) with ``lazy=True`` reads the headers of the files and
    evaluates nothing.
    """
    if "model_type" not in config:
        return None, f"config.json in {folder} has no model_type, so mlx-lm cannot build it"
    from mlx_lm.utils import load_model

    from mlxbench_kernel.graph.changes import kept

    try:
        with kept():  # the random state, from which new layers draw
            model, _ = load_model(folder, lazy=True, trust_remote_code=trusted)
            return copied(model), ""
    except Exception as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        return None, f"mlx-lm cannot build it: {line[0]}"


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config with what its part about text says, where it has parts."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config
