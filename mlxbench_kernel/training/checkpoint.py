"""Checkpoints: folders of safetensors that MLX reads without mlxbench, made whole or not at all.

The parameters of a model are in ``model.safetensors`` under MLX's names; what else there is lies
beside it: optimizer and other trees, and in ``stepper.json`` their structure, numbers, random
keys and fingerprints of the arrays. With sharded layers each rank writes its own.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.files import write_text, write_whole
from mlxbench_kernel.rank.folders import attempt, publish
from mlxbench_kernel.training.exchange import agree, gather_texts
from mlxbench_kernel.training.randomness import NAMES, go_on, states, states_of
from mlxbench_kernel.training.replicas import fingerprints, sharded_layers
from mlxbench_kernel.training.structure import merged, mismatch, put_together, take_apart

FORMAT = 1
ABOUT = "stepper"  # the file that says what the others are
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


def save(
    path: str | Path,
    trees: Mapping[str, Any],
    about: Mapping[str, Any],
    group: Any = None,
    texts: Mapping[str, str] = NO_TEXTS,
) -> Path:
    """Write a checkpoint; called on all ranks alike.

    An older checkpoint at the same path is replaced once the new one is complete. Replicated
    state is written by rank 0; where there are sharded layers every rank writes its own. The
    states of ``mx.random``, ``random`` and ``numpy.random`` are kept for each rank.

    Parameters
    ----------
    path
        The folder, ``~`` for the home folder; it is made.
    trees
        By name: modules, optimizers, dicts, lists, tuples, arrays, numbers.
    about
        What else is to be known, in terms of JSON.
    group : mlx.core.distributed.Group or None
        The ranks; None for this process alone.
    texts
        Files that lie beside, for other programs, by name.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        There is something else at that path, or something that no checkpoint can hold.
    StorageError
        It could not be written; an older checkpoint is still there. All ranks raise either.
    """
    place = Path(path).expanduser().absolute()
    rank, size = _standing(group)
    error: BenchError | None = None
    apart = {}
    try:
        _require_free(place)
        _require_kept(trees, about)
        apart = {name: take_apart(tree) for name, tree in trees.items()}
    except BenchError as raised:
        error = raised
    agree(error, group)
    sharded = any(sharded_layers(tree) for tree in trees.values())
    mine = {"token": secrets.token_hex(4), "sharded": sharded, "random": states()}
    told = [json.loads(text) for text in gather_texts(json.dumps(mine), group)]
    sharded = any(each["sharded"] for each in told)
    content = {
        "format": FORMAT,
        "ranks": size,
        "sharded": sharded,
        "random": [each["random"] for each in told],
        "about": dict(about),
    }
    part = place.with_name(f".{place.name}-{told[0]['token']}.part")
    suffix = f"-rank-{rank + 1}-of-{size}" if sharded else ""

    def write(folder: Path) -> None:
        _write(folder, suffix, trees, apart, content)
        for name, text in texts.items():
            write_text(folder / name, text)

    try:
        if rank == 0 or sharded:
            error = attempt(place, part, lambda: write(part))
        agree(error, group)
        # By turns: ranks with the same disk find it done, those with another one do it there.
        for turn in range(size if sharded else 1):
            if turn == rank and part.exists():
                error = attempt(place, part, lambda: publish(part, place))
            agree(error, group)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def load(path: str | Path, group: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint; called on all ranks alike. Nothing is changed yet: see `restore`.

    Replicated state loads on any number of ranks, sharded on as many as have saved it.

    Parameters
    ----------
    path, group
        As of `save`.

    Returns
    -------
    trees, about : dict
        As of `save`: trees of dicts, lists, tuples, arrays and numbers; with them this rank's
        random states, as ``mx.random.state`` (uint32 [2]), ``random.state`` and
        ``numpy.random.state``.

    Raises
    ------
    UsageError
        There is none, it is damaged, or of another number of ranks; on all ranks.
    """
    error: BenchError | None = None
    trees: dict[str, Any] = {}
    about: dict[str, Any] = {}
    try:
        trees, about = _read(Path(path).expanduser().absolute(), *_standing(group))
    except BenchError as raised:
        error = raised
    agree(error, group)
    return trees, about


def restore(
    trees: Mapping[str, Any], loaded: Mapping[str, Any], group: Any = None
) -> dict[str, Any]:
    """Put what was loaded into the live trees, in place; called on all ranks alike.

    Parameters
    ----------
    trees
        As of `save`; those that are wanted.
    loaded
        From `load`. Random states in it become those of now.
    group
        As of `save`.

    Returns
    -------
    dict
        The values of those trees that are arrays, tuples or numbers: variables of the caller's.

    Raises
    ------
    UsageError
        Something is missing, or has another dtype or shape. Nothing was changed on any rank.
    """
    agree(_unfit(trees, loaded), group)
    variables = {}
    for name, tree in trees.items():
        value = merged(tree, loaded[name])
        if not isinstance(frozen.containers(tree), (dict, list)):
            variables[name] = value
    go_on(loaded)
    return variables


def _standing(group: Any) -> tuple[int, int]:
    return (0, 1) if group is None else (group.rank(), group.size())


def _require_free(place: Path) -> None:
    if place.is_dir():
        if any(place.iterdir()) and not any(place.glob(f"{ABOUT}*.json")):
            raise UsageError(f"{place} is a folder of other files; name another for the checkpoint")
    elif place.exists():
        raise UsageError(f"{place} is a file; name another folder for the checkpoint")


def _require_kept(trees: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    for name in trees:
        if not re.fullmatch(r"\w+", name) or name == ABOUT:
            raise UsageError(
                f"a tree of a checkpoint cannot be called {name!r}; name it as a variable"
            )
    for key, value in about.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{key!r} cannot be kept in a checkpoint: {error}") from None


def _write(
    part: Path,
    suffix: str,
    trees: Mapping[str, Any],
    apart: Mapping[str, tuple[Any, dict[str, mx.array]]],
    content: dict[str, Any],
) -> None:
    part.mkdir(parents=True, exist_ok=True)
    listed: dict[str, Any] = {}
    for name, (structure, arrays) in apart.items():
        files: dict[str, list[str]] = {}
        for file, some in _by_file(name, trees[name], arrays, suffix).items():
            bits = {key: _storable(array) for key, array in some.items()}

            def write(path: Path, bits: dict[str, mx.array] = bits) -> None:
                mx.save_safetensors(str(path), bits, {"format": "mlx"})

            write_whole(part / file, write)
            files[file] = list(some)
        marks = np.array(fingerprints(list(arrays.values()))).tolist()
        checks = dict(zip(arrays, marks, strict=True))
        listed[name] = {"structure": structure, "files": files, "fingerprints": checks}
    write_text(part / f"{ABOUT}{suffix}.json", json.dumps({**content, "trees": listed}))


def _by_file(
    name: str, tree: Any, arrays: dict[str, mx.array], suffix: str
) -> dict[str, dict[str, mx.array]]:
    """The arrays of a tree by file: parameters alone, as ``model.load_weights`` wants them."""
    names = set(arrays)
    if isinstance(tree, Module):
        names &= dict(tree_flatten(tree.parameters())).keys()
    files = {
        f"{name}{suffix}.safetensors": {k: a for k, a in arrays.items() if k in names},
        f"{name}-private{suffix}.safetensors": {k: a for k, a in arrays.items() if k not in names},
    }
    return {file: some for file, some in files.items() if some}


def _storable(array: mx.array) -> mx.array:
    return array.view(mx.uint64) if array.dtype == mx.float64 else array  # MLX writes no float64


def _read(place: Path, rank: int, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    file = _about_file(place, rank, size)
    try:
        content = json.loads(file.read_text())
        if content["format"] > FORMAT:
            raise UsageError(
                f"{place} was written by a newer mlxbench; install that one to load it"
            )
        trees = {}
        for name, listed in content["trees"].items():
            arrays: dict[str, mx.array] = {}
            for each, names in listed["files"].items():
                arrays |= _arrays(place / each, names)
            _give_back_float64(listed["structure"], arrays)
            _require_marks(place, arrays, listed["fingerprints"])
            trees[name] = put_together(listed["structure"], arrays)
        trees |= states_of(rank, content["random"])
        return trees, content["about"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, error) from None
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or file}: {error.strerror}") from None


def _about_file(place: Path, rank: int, size: int) -> Path:
    if not place.is_dir():
        left = sorted(place.parent.glob(f".{place.name}-*.old")) if place.parent.is_dir() else []
        older = f"; an older one was left at {left[-1]}" if left else ""
        raise UsageError(f"there is no checkpoint at {place}{older}")
    file = place / f"{ABOUT}.json"
    if file.exists():
        return file
    own = place / f"{ABOUT}-rank-{rank + 1}-of-{size}.json"
    if own.exists():
        return own
    sizes = {each.stem.rpartition("-")[2] for each in place.glob(f"{ABOUT}-rank-*-of-*.json")}
    if sizes and str(size) not in sizes:
        others = sizes.pop()
        raise UsageError(
            f"{place} holds layers that are sharded over {others} ranks and here are {size}; "
            f"load it on {others} ranks"
        )
    missing = own if sizes else file
    raise UsageError(f"{place} is no checkpoint, or part of one: {missing.name} is missing")


def _arrays(file: Path, names: list[str]) -> dict[str, mx.array]:
    from safetensors import safe_open

    if not file.exists():
        raise UsageError(f"{file} is missing; take another checkpoint")
    try:
        with safe_open(str(file), "numpy"):  # checks the header and the length, as MLX does not
            pass
        found = mx.load(str(file))
        mx.eval(found)
    except Exception as error:
        raise _damaged(file, error) from None
    if not isinstance(found, dict) or set(found) != set(names):
        raise _damaged(file, "it holds other arrays")
    return found


def _give_back_float64(structure: Any, arrays: dict[str, mx.array]) -> None:
    parts = [structure]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif isinstance(part, dict) and part.get("dtype") == "float64":
            arrays[part["array"]] = arrays[part["array"]].view(mx.float64)
        elif isinstance(part, dict):
            parts += part.values()


def _require_marks(place: Path, arrays: dict[str, mx.array], marks: dict[str, list[int]]) -> None:
    found = np.array(fingerprints(list(arrays.values()))).tolist()
    for name, mark in zip(arrays, found, strict=True):
        if marks[name] != mark:
            raise _damaged(place, f"{name} is not what was saved")


def _damaged(file: Path, why: object) -> UsageError:
    line = " ".join(str(why).split())
    return UsageError(f"{file} is damaged ({line}); take another checkpoint")


def _unfit(trees: Mapping[str, Any], loaded: Mapping[str, Any]) -> UsageError | None:
    for name, tree in trees.items():
        if name not in loaded:
            there = ", ".join(each for each in loaded if each not in NAMES) or "nothing"
            return UsageError(f"the checkpoint has no {name}; it has {there}")
        found = mismatch(tree, loaded[name], name)
        if found is not None:
            return UsageError(f"{found}: nothing was changed")
    return None
