"""Loads a language model: of the weights each rank reads its share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models import ways
from mlxbench_kernel.models.folder import ADAPTER, check, find
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.shares import Shares

Progress = Callable[[int, int], None]  # bytes that were read, and all that will be

PIECE = 64 * 1024 * 1024  # bytes that are read between two looks at the progress


def load(
    path_or_repo: str | Path,
    shard: str = "data",
    group: mx.distributed.Group | None = None,
    *,
    split: list[int] | None = None,
    adapter: str | Path | None = None,
    draft: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda done, total: None,
) -> Part:
    """Load this rank's part of a language model with mlx-lm.

    Parameters
    ----------
    path_or_repo
        Folder of a model as mlx-lm reads it, or its name on the hub.
    shard
        "tensor": a part of each layer on each rank. "pipeline": whole layers. "data": everything
        on each rank.
    group
        The ranks; None for this one alone.
    split
        Layers of each rank of a pipeline; rank 0 has the last ones.
    adapter
        Folder with adapters that mlx-lm has saved, put on before the model is split.
    draft
        Of a smaller model with the same tokenizer, for speculative decoding.
    revision
        Of the model on the hub.
    trust_remote_code
        Whether Python code that comes with the model may run.
    progress
        Called with bytes.

    Raises
    ------
    UsageError
        The folder is not whole, or the model does not go that way.
    """
    began = time.perf_counter()
    folder = find(str(path_or_repo), revision)
    check(folder)
    size = 1 if group is None else group.size()
    check_beside(folder, shard, size, adapter, draft)
    shares = Shares()
    with shares.noted():
        model, config = _built(folder, trust_remote_code)
        if size > 1:
            ways.check(model, str(config.get("model_type")), shard, size)
            ways.cut(model, shard, group, split)
    if adapter is not None:
        from mlx_lm.utils import load_adapters

        adapter = Path(adapter).expanduser().resolve()
        load_adapters(model, str(adapter))
        model.eval()
    read = _read(model, shares, progress)
    part = Part(
        model,
        _tokenizer(folder, config, trust_remote_code),
        config,
        folder,
        shard if size > 1 else "data",
        group if size > 1 else None,
        adapter=adapter,
        nbytes=sum(array.nbytes for array in _arrays(model).values()),
        read_bytes=read,
    )
    if draft is not None:
        part.draft = _built(find(str(draft)), trust_remote_code)[0]
        mx.eval(part.draft.parameters())
    part.seconds = time.perf_counter() - began
    return part


def check_beside(
    folder: Path,
    shard: str,
    size: int,
    adapter: str | Path | None = None,
    draft: str | Path | None = None,
) -> None:
    """Check what goes with a model, before anything is loaded.

    Raises
    ------
    UsageError
        An adapter is not there or does not go that way, or a draft model has other tokens.
    """
    if adapter is not None:
        _check_adapter(Path(adapter).expanduser(), shard, size)
    if draft is not None:
        own, its = (check(each).get("vocab_size") for each in (folder, find(str(draft))))
        if own != its:
            raise UsageError(
                f"the draft model has a vocabulary of {its} tokens and the model one of {own}: "
                "give one with the same tokenizer"
            )


def _built(folder: Path, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """The model, lazy, with its config."""
    from mlx_lm.utils import load_model

    try:
        return load_model(folder, lazy=True, trust_remote_code=trust_remote_code)
    except ValueError as error:  # an architecture it does not know, or weights that do not match
        line = (str(error).strip().splitlines() or ["ValueError"])[0]
        raise UsageError(f"mlx-lm cannot build the model in {folder}: {line}") from error


def _read(model: Module, shares: Shares, progress: Progress) -> int:
    """Read all parameters; how many bytes that were."""
    left = _arrays(model)
    total = sum(array.nbytes for array in left.values())
    done = read = 0
    progress(done, total)
    waiting: list[mx.array] = []
    size = 0
    for path in list(left):
        array = left.pop(path)
        read += shares.read_bytes(array)
        share = shares.of(array)
        if share is not None:
            array = share.read()
            model.update(tree_unflatten([(path, array)]), strict=False)
        waiting.append(array)
        size += array.nbytes
        del array
        if size >= PIECE or not left:
            mx.eval(waiting)
            done, size = done + size, 0
            waiting.clear()
            progress(done, total)
    return read


def _arrays(model: Module) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


def _tokenizer(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> Any:
    from mlx_lm import utils

    load_tokenizer: Any = utils.load_tokenizer
    extra = {"trust_remote_code": True} if trust_remote_code else None
    try:
        return load_tokenizer(folder, extra, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:  # of transformers and of what it is built on
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the tokenizer in {folder} cannot be read: {line}") from error


def _check_adapter(folder: Path, shard: str, size: int) -> None:
    for name in ADAPTER:
        if not (folder / name).is_file():
            raise UsageError(
                f"there is no {name} in {folder}: give a folder that lm.finetune or mlx_lm.lora "
                "has saved"
            )
    if shard == "tensor" and size > 1:
        raise UsageError(
            "mlx-lm puts no LoRA on layers that are split: type shard='data' or 'pipeline', or "
            "fuse the adapters first (lm.fuse)"
        )
