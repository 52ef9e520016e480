"""Long prompts that are read once, kept in a KV cache, and written to files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.models.caches import KVCaches
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt, encode

SOME = 64  # values of each parameter that tell two models apart
STEP = 512  # tokens that are read at a time: the memory of more is not worth what they save


def read(
    part: Part,
    prompt: Prompt,
    name: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Read a prompt into a KV cache that is kept; all ranks of a split model alike.

    Parameters
    ----------
    part, prompt
        As for `prompts.encode`.
    name
        Under which the cache is kept, for a generation with ``keep=name``.
    progress
        Told the tokens that were read, and how many there are.

    Returns
    -------
    dict
        ``tokens`` of the prompt, ``reused`` of these, ``nbytes`` of the cache on this rank.

    Raises
    ------
    UsageError
        The prompt or the name cannot be.
    """
    from mlx_lm.generate import generation_stream

    if not name:
        raise UsageError('the kept prompt needs a name: type lm.read_prompt(text, "book")')
    tokens = encode(part, prompt)
    caches = KVCaches(part, name)
    reused = done = caches.take(tokens)
    models = [(part.model, caches.caches)]
    if part.draft is not None:
        count = len(part.model.layers)
        models = [(part.model, caches.caches[:count]), (part.draft, caches.caches[count:])]
    progress(done, len(tokens))
    with mx.stream(generation_stream):
        while done < len(tokens):
            piece = mx.array(tokens[done : done + STEP])[None]
            for model, own in models:
                model(piece, cache=own)
                mx.eval([cache.state for cache in own])
            done += piece.size
            progress(done, len(tokens))
            mx.clear_cache()
    caches.keep(tokens)
    return {"tokens": len(tokens), "reused": reused, "nbytes": caches.nbytes}


def save(part: Part, name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Write a kept prompt of this rank, in mlx-lm's format for prompt caches.

    Returns
    -------
    dict
        ``tokens`` in it, and the ``file``.

    Raises
    ------
    UsageError
        Nothing is kept under that name.
    StorageError
        The disk does not take it; a file of that name is as before.
    """
    from mlx_lm.models.cache import save_prompt_cache

    tokens, caches = _kept(part, name)
    file = _file(part, name, folder)
    new = file.with_name(f"new-{file.name}")
    about = {"tokens": json.dumps(tokens), "model": _digest(part), "shard": _shard(part)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_prompt_cache(str(new), caches, about)
        os.replace(new, file)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            new.unlink()
        raise StorageError(f"{file} could not be written: {error}") from None
    return {"tokens": len(tokens), "file": str(file)}


def load(part: Part, name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Keep a prompt that `save` has written, under the same name.

    Returns
    -------
    dict
        As `save`.

    Raises
    ------
    UsageError
        There is no such file, it is not whole, or it is of another model or another way of
        sharing it; what was kept is as before.
    """
    from mlx_lm.models import cache as files

    read_file: Callable[..., Any] = files.load_prompt_cache
    file = _file(part, name, folder)
    if not file.exists():
        raise UsageError(f"there is no {file}: type lm.save_prompt({name!r}, folder) first")
    try:
        caches, about = read_file(str(file), return_metadata=True)
        tokens = json.loads(about["tokens"])
        model, shard = about["model"], about["shard"]
        mx.eval([cache.state for cache in caches])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is no kept prompt, or not whole: {error}") from None
    if model != _digest(part):
        raise UsageError(f"{file} was read by another model than {part.folder.name}: read it again")
    if shard != _shard(part):
        raise UsageError(
            f"{file} was written by a model on other ranks ({shard}), this one is "
            f"{_shard(part)}: read the prompt again"
        )
    part.see_weights()
    part.caches[name] = (tokens, caches)
    return {"tokens": len(tokens), "file": str(file)}


def forget(part: Part, name: str) -> int:
    """Keep a prompt no more; the bytes that this frees on this rank.

    Raises
    ------
    UsageError
        Nothing is kept under that name.
    """
    _, caches = _kept(part, name)
    flat: Any = tree_flatten([cache.state for cache in caches])
    freed = sum(array.nbytes for _, array in flat if isinstance(array, mx.array))
    del part.caches[name], caches, flat
    mx.clear_cache()
    return int(freed)


def _kept(part: Part, name: str) -> Any:
    part.see_weights()
    if name not in part.caches:
        raise UsageError(
            f"no prompt is kept as {name!r}: {_there(part)}type lm.read_prompt(text, {name!r})"
        )
    return part.caches[name]


def _file(part: Part, name: str, folder: str | os.PathLike[str]) -> Path:
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"{name!r} cannot be part of a file's name: use letters, digits, - and _")
    return Path(folder).expanduser() / f"{name}-rank{part.rank}of{part.size}.safetensors"


def _shard(part: Part) -> str:
    drafted = "" if part.draft is None else ", with a draft model"
    return f"{part.shard} on {part.size} ranks{drafted}"


def _digest(part: Part) -> str:
    """Tells models apart, tuned ones too, not their places: config and a bit of each parameter."""
    digest = hashlib.sha256(json.dumps(part.config, sort_keys=True, default=str).encode())
    flat: Any = tree_flatten(part.model.parameters())
    for name, array in sorted(flat):
        digest.update(name.encode())
        digest.update(bytes(memoryview(array.flatten()[:SOME].view(mx.uint8))))
    return digest.hexdigest()


def _there(part: Part) -> str:
    return f"there is {', '.join(map(repr, part.caches))}; " if part.caches else ""
