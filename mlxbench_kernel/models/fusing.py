"""Writes a model with its adapters fused into it, as ``mlx_lm.fuse`` does; the one here stays."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

from mlx.nn.layers.base import Module
from mlx.utils import tree_unflatten

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.models.adapting import is_quantized
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.folders import attempt, publish
from mlxbench_kernel.training.exchange import agree


def fuse(part: Part, folder: str | Path, dequantize: bool = False) -> Path:
    """Write the model as one without adapters, on all ranks alike; rank 0 has the disk.

    Parameters
    ----------
    part
        Of a model that is not split.
    folder
        Made, ``~`` for the home folder; an empty one may be there.
    dequantize
        Whether quantized weights become floats.

    Returns
    -------
    Path
        The folder, which `load` and mlx-lm read.

    Raises
    ------
    UsageError
        There is something in the folder, or the model is split.
    StorageError
        It could not be written; nothing of it is left.
    """
    place = Path(folder).expanduser().absolute()
    if part.is_split:
        raise UsageError(
            f"no rank has the whole of a model that is split ({part.shard}): load it again with "
            f"LanguageModel.load({str(part.folder)!r}, shard='data')"
        )
    error: BenchError | None = None
    if part.rank == 0:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            error = UsageError(f"there is something in {place}: name another folder")
        else:
            beside = place.with_name(f".{place.name}-{secrets.token_hex(4)}.part")
            key = frozen.random_key()
            try:
                error = attempt(place, beside, lambda: _write(part, beside, dequantize))
                if error is None:
                    error = attempt(place, beside, lambda: publish(beside, place))
            finally:
                frozen.seed(key)  # a layer that is made draws weights, here on this rank alone
                shutil.rmtree(beside, ignore_errors=True)
    agree(error, part.group)
    return place


def _write(part: Part, folder: Path, dequantize: bool) -> None:
    from mlx_lm.utils import dequantize_model, save

    model: Any = _copied(part.model)
    fused: list[tuple[str, Any]] = [
        (name, module.fuse(dequantize=dequantize))
        for name, module in model.named_modules()
        if hasattr(module, "fuse")
    ]
    if fused:
        model.update_modules(tree_unflatten(fused))
    config = dict(part.config)
    if dequantize and is_quantized(model):
        model = dequantize_model(model)
        for name in ("quantization", "quantization_config"):
            config.pop(name, None)
    save(folder, str(part.folder), model, part.tokenizer, config, donate_model=False)


def _copied(value: Any) -> Any:
    """A model of the same arrays and of modules of its own, which may be replaced."""
    if isinstance(value, Module):
        made = type(value).__new__(type(value))
        vars(made).update(vars(value))
        # Not `Module.update`, which looks for parameters.
        dict.update(made, {name: _copied(each) for name, each in value.items()})
        return made
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(each) for each in value)
    return value
