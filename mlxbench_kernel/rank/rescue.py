"""Protected state on disk and on its way to another rank."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers import distributed as sharding
from mlx.nn.layers.base import Module

from mlxbench_kernel.containers import put
from mlxbench_kernel.rank import arrays, frozen
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.files import write_whole
from mlxbench_kernel.rank.frozen import containers
from mlxbench_kernel.rank.protection import PROTECTION, Kept, Protection

SHARDED = (
    sharding.AllToShardedLinear,
    sharding.ShardedToAllLinear,
    sharding.QuantizedAllToShardedLinear,
    sharding.QuantizedShardedToAllLinear,
)


def save(protection: Protection, folder: str) -> list[int]:
    """Write all kept values to files; evaluates nothing, so also while the main thread is stuck.

    Parameters
    ----------
    protection
        Whose.
    folder
        Where, ``~`` for the home folder; it is made.

    Returns
    -------
    list of int
        The completed evaluations whose values were written.

    Raises
    ------
    BenchError
        The disk is full or cannot be written to; nothing half-written stays.
    """
    from safetensors.numpy import save_file

    place = Path(folder).expanduser()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    counts = []
    for kept in list(protection.kept):
        parts = arrays.take_apart({**_trees(protection, kept), **_companions(protection, True)})
        content = {str(index): array for index, array in enumerate(parts.arrays)}
        about = {
            "structure": base64.b64encode(parts.structure).decode(),
            "dtypes": json.dumps(parts.dtypes),
        }
        write_whole(_path(place, kept.count), lambda path: save_file(content, path, about))  # noqa: B023
        counts.append(kept.count)
    return counts


def load(folder: str, count: int) -> tuple[list[str], list[str]]:
    """Put what `save` has written on this rank into what is protected now.

    Parameters
    ----------
    folder, count
        As of `save`.

    Returns
    -------
    tuple of lists of str
        As of `take`.
    """
    from safetensors import safe_open

    with safe_open(str(_path(Path(folder).expanduser(), count)), "numpy") as file:
        about = file.metadata()
        dtypes = json.loads(about["dtypes"])
        found = [file.get_tensor(str(index)) for index in range(len(dtypes))]
    return take(arrays.put_together(base64.b64decode(about["structure"]), found), count)


def _path(folder: Path, count: int) -> Path:
    return folder / f"rank-{GROUP.place}-{count}.safetensors"


def give(count: int | None) -> dict[str, Any]:
    """The kept values after so many evaluations, as plain trees by name; the last for None."""
    kept = [each for each in PROTECTION.kept if count is None or each.count == count]
    return {**_trees(PROTECTION, kept[-1]), **_companions(PROTECTION, False)} if kept else {}


def take(trees: dict[str, Any], count: int) -> tuple[list[str], list[str]]:
    """Put given values into what is protected here, and make them its last completed ones.

    Parameters
    ----------
    trees
        From `give`.
    count
        The completed evaluation that they are from, here as on all ranks from now on.

    Returns
    -------
    missing : list of str
        Names that are not protected here, which therefore were left out.
    said : list of str
        What is to be told of the others.
    """
    missing = []
    trees = dict(trees)
    companions = trees.pop(COMPANIONS, {})
    for name, tree in trees.items():
        if name == RANDOM:
            frozen.seed(tree)
        elif name not in PROTECTION.trees:
            missing.append(name)
        elif isinstance(tree, (dict, list)):
            _absorb(containers(PROTECTION.trees[name]), tree)
        else:
            PROTECTION.trees[name] = PROTECTION.namespace[name] = tree
    said = [
        PROTECTION.companions[name].take(given)
        for name, given in companions.items()
        if name in PROTECTION.companions and name in trees
    ]
    PROTECTION.begin_again(count)
    return missing, [line for line in said if line]


RANDOM = "mx.random.state"
COMPANIONS = "mlxbench.companions"


def sharded() -> list[str]:
    """The protected names that hold layers which are sharded over the ranks."""
    return [
        name
        for name, tree in PROTECTION.trees.items()
        if any(isinstance(each, SHARDED) for each in _modules(tree))
    ]


def _modules(tree: Any) -> Iterator[Module]:
    """All modules in a tree, at any depth."""
    if isinstance(tree, Module):
        yield from tree.modules()
    elif isinstance(tree, (dict, list, tuple)):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _modules(each)


def _companions(protection: Protection, own: bool) -> dict[str, Any]:
    companions = protection.companions.items()
    given = {name: each.give(own) for name, each in companions if name in protection.trees}
    return {COMPANIONS: given} if given else {}


def _trees(protection: Protection, kept: Kept) -> dict[str, Any]:
    copies = {id(original): copy for parts in kept.parts.values() for original, copy in parts}
    trees = {
        name: kept.variables[name] if name in kept.variables else _plain(containers(tree), copies)
        for name, tree in protection.trees.items()
    }
    return {**trees, RANDOM: kept.random}


def _plain(value: Any, copies: dict[int, Any]) -> Any:
    """A tree of dicts and lists with only what is data in it."""
    value = copies.get(id(value), value)
    if isinstance(value, dict):
        return {key: _plain(each, copies) for key, each in value.items() if _is_data(each)}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each, copies) for each in value)
    return value


def _is_data(value: Any) -> bool:
    return value is None or isinstance(value, (mx.array, dict, list, tuple, bool, int, float, str))


def _absorb(target: Any, tree: Any) -> None:
    """Put the values of a tree into the containers that are there."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        old = target.get(key) if isinstance(target, dict) else target[key]
        inside = isinstance(value, (dict, list)) and isinstance(old, (dict, list))
        # A module without parameters is empty, and is still that module.
        if inside and (old or isinstance(old, Module)):
            _absorb(old, value)
        else:
            put(target, key, value)
