"""What a folder of safetensors says of a model, read from the headers alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbench_kernel.errors import UsageError

INDEX = "model.safetensors.index.json"
# Bits of an element, by what the format calls them (safetensors 0.8, ``Dtype``).
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32,
    "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8,
    "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An array in a file.

    Attributes
    ----------
    dtype
        As the format calls it: ``BF16``, ``U32``, …
    shape
        As in the header.
    nbytes
        Bytes of its data.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model's folder.

    Raises
    ------
    UsageError
        There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"FitPlan: there is no config.json in {folder}: give the folder of a model as mlx-lm "
            "reads it, with config.json and model*.safetensors"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(
            f"FitPlan: {path} cannot be read ({error}): put a whole one there"
        ) from error
    if not isinstance(config, dict):
        raise UsageError(f"FitPlan: {path} is no JSON object: put the model's own there")
    return config


def read_headers(folder: Path) -> dict[str, Tensor]:
    """The tensors of ``model*.safetensors``, by name; nothing of their data is read.

    Raises
    ------
    UsageError
        There are no such files, one of the index is missing, or one is corrupt or cut short.
    """
    files = sorted(folder.glob("model*.safetensors"))
    missing = sorted(_in_index(folder) - {file.name for file in files})
    if missing:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise UsageError(
            f"FitPlan: {missing[0]}{more} of {INDEX} is not in {folder}: download the rest"
        )
    if not files:
        others = sorted(
            path.name
            for end in ("safetensors", "bin", "gguf", "npz")
            for path in folder.glob(f"*.{end}")
        )
        there = f"only {others[0]}, which mlx-lm does not read: type" if others else "type"
        raise UsageError(
            f"FitPlan: there is no model*.safetensors in {folder}, {there} "
            "mlx_lm.convert --hf-path MODEL --mlx-path FOLDER and give that folder"
        )
    found: dict[str, Tensor] = {}
    for file in files:
        found.update(_header(file))
    return found


def _in_index(folder: Path) -> set[str]:
    """The files that the index names; none where there is no index."""
    path = folder / INDEX
    try:
        return set(json.loads(path.read_text())["weight_map"].values())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"FitPlan: {path} cannot be read ({type(error).__name__}: {error}): download it again"
        ) from error


def _header(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    try:
        # It maps the file, and reads what is looked at.
        with safe_open(str(file), framework="np") as opened:
            for name in list(opened.keys()):
                view = opened.get_slice(name)
                dtype, shape = str(view.get_dtype()), tuple(view.get_shape())
                nbytes = -(-math.prod(shape) * _BITS.get(dtype, 32) // 8)
                found[name] = Tensor(dtype, shape, nbytes)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"FitPlan: {file} is corrupt or cut short ({_reason(error)}; it has "
            f"{file.stat().st_size:,} bytes): download it again"
        ) from error
    return found


def _reason(error: Exception) -> str:
    return str(error).removeprefix("Error while deserializing header: ")
