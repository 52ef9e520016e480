"""Adapters in files, as mlx-lm reads and writes them, and with them what a run goes on from.

A folder has mlx-lm's ``adapters.safetensors`` and ``adapter_config.json``; beside them lie the
optimizer's state and where the run stood, as a checkpoint has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.training import checkpoint
from mlxbench_kernel.training.exchange import agree

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"


@dataclass(frozen=True)
class Saved:
    """What a folder of adapters holds.

    Attributes
    ----------
    folder, config
        Where it is, and its ``adapter_config.json``.
    weights
        By the name of the parameter.
    trees, about
        Of the checkpoint beside them; empty where mlx-lm has written the folder.
    """

    folder: Path
    config: dict[str, Any]
    weights: dict[str, mx.array]
    trees: dict[str, Any]
    about: dict[str, Any]


def weights_of(model: Module, names: Mapping[str, Any] | set[str]) -> dict[str, mx.array]:
    """The parameters of these names."""
    flat: Any = tree_flatten(model.parameters())
    return {name: array for name, array in flat if name in names}


def save(
    folder: str | Path,
    weights: Mapping[str, mx.array],
    config: Mapping[str, Any],
    optimizer: Any,
    about: Mapping[str, Any],
    group: mx.distributed.Group,
) -> Path:
    """Write adapters, on all ranks alike; rank 0 has the disk.

    They replace older ones once they are complete.

    Parameters
    ----------
    folder
        Made, ``~`` for the home folder.
    weights
        Adapters, or with ``full`` the layers that were tuned.
    config
        For ``adapter_config.json``.
    optimizer, about
        What the run goes on from.

    Raises
    ------
    UsageError
        There are other files in the folder.
    StorageError
        It could not be written; what was there still is.
    """
    trees = {"adapters": dict(weights), "optimizer": optimizer}
    texts = {CONFIG: json.dumps(dict(config), indent=4, sort_keys=True)}
    return checkpoint.save(folder, trees, about, group, texts)


def read(folder: str | Path, group: mx.distributed.Group | None) -> Saved:
    """Read adapters that `save` or ``mlx_lm.lora`` has written, on all ranks alike.

    Raises
    ------
    UsageError
        There are none, or they are damaged.
    """
    place = Path(folder).expanduser().absolute()
    error: UsageError | None = None
    config: dict[str, Any] = {}
    weights: dict[str, mx.array] = {}
    trees: dict[str, Any] = {}
    about: dict[str, Any] = {}
    whole = (place / f"{checkpoint.ABOUT}.json").exists()
    try:
        for name in (CONFIG, WEIGHTS):
            if not (place / name).is_file():
                raise UsageError(
                    f"there is no {name} in {place}: give a folder that lm.save_adapters or "
                    "mlx_lm.lora has written"
                )
        config = _config(place / CONFIG)
        if not whole:
            weights = _weights(place / WEIGHTS)
    except UsageError as raised:
        error = raised
    agree(error, group)
    if whole:
        trees, about = checkpoint.load(place, group)
        weights = trees.pop("adapters")
    return Saved(place, config, weights, trees, about)


def check(model: Module, weights: Mapping[str, mx.array], folder: Path) -> None:
    """Check that a model has the parameters that were saved.

    Raises
    ------
    UsageError
        It has not.
    """
    flat: Any = tree_flatten(model.parameters())
    known = dict(flat)
    for name, array in weights.items():
        if name not in known:
            raise UsageError(
                f"the adapters in {folder} have {name}, which this model has not: load the model "
                "that they were made for"
            )
        if array.shape != known[name].shape:
            raise UsageError(
                f"the adapters in {folder} have {name} of shape {list(array.shape)}, and this "
                f"model of shape {list(known[name].shape)}: load the model that they were made for"
            )


def _config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): take another folder") from None
    if not isinstance(found, dict):
        raise UsageError(f"{file} is no config of adapters: take another folder")
    return found


def _weights(file: Path) -> dict[str, mx.array]:
    try:
        found: Any = mx.load(str(file))
        mx.eval(found)
    except Exception as error:  # MLX raises several kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{file} is damaged ({line}): take another folder") from None
    return dict(found)
