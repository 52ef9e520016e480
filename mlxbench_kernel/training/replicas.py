"""Replicas that must be equal: their parameters compared over ranks, and made equal again.

A fingerprint holds the bits of one parameter in 64. Ranks exchange only these.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.distributed import FullyShardedModule
from mlx.nn.layers.normalization import BatchNorm
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from mlxbench_kernel.containers import put
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank.frozen import containers as containers_of
from mlxbench_kernel.rank.rescue import SHARDED as SHARDED_LAYERS
from mlxbench_kernel.training.exchange import agree, gather_texts, to_numpy
from mlxbench_kernel.training.structure import dtype_name

SHARDED = (*SHARDED_LAYERS, FullyShardedModule)
SMALL = 4096  # halfwords up to which each is mixed by itself
# Prime numbers of columns: no period of a parameter's own (rows, heads) falls on it.
COLUMNS = (61, 127, 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521)
MOST_ROWS = 1 << 16  # sums of so many 16-bit numbers cannot pass 32 bits
LONG = 16  # rows to a column: the fewer columns the faster, and the more rows the more to mix
CHUNK = 16 << 20  # bytes of a parameter that travel at once
UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}  # by bytes of an element


def fingerprints(arrays: Sequence[mx.array]) -> mx.array:
    """The bits of each array in 64, to be compared with those of other ranks; lazy.

    The 16-bit halves of an array are laid out as a table, and the exact sums of its rows and
    columns taken, which reads the memory twice at the speed of a reduction and writes next to
    nothing. These sums are mixed (the finalizer of MurmurHash3) with their places and added up.
    Any three
    changed halves change a sum, as do two that changed places. It is no hash against an adversary.

    Parameters
    ----------
    arrays
        Of any dtype and shape.

    Returns
    -------
    mlx.core.array
        uint32 of shape [len(arrays), 2]; of the bits, the dtype and the shape alone, so NaN
        payloads and the sign of zero count, and how the array lies in memory does not.
    """
    if not arrays:
        return mx.zeros((0, 2), mx.uint32)
    words = [mx.zeros(1, mx.uint32)]  # so that each array begins after a word
    counts = []
    for array in arrays:
        mine = _words(array)
        words += mine
        counts.append(sum(word.size for word in mine))
    places, starts, ends = _layout(tuple(counts))
    kinds = mx.array([_kind(array.dtype, array.shape) for array in arrays], mx.uint32)
    once = _mixed(mx.concatenate(words) ^ places)
    totals = [mx.cumsum(each) for each in (once, _mixed(once ^ ~places))]
    return mx.stack([total[ends] - total[starts] + kinds for total in totals], axis=1)


def _words(array: mx.array) -> list[mx.array]:
    """What of an array is mixed, uint32; all sums are exact."""
    flat = array.reshape(-1)
    odd = []
    if array.dtype.size == 1:
        flat = flat.view(mx.uint8)
        even = flat.size // 2 * 2
        flat, odd = flat[:even], [flat[even:].astype(mx.uint32)]
    halves = flat.view(mx.uint16)
    if halves.size <= SMALL:
        return [halves.astype(mx.uint32), *odd]
    fitting = (c for c in COLUMNS if halves.size // c <= min(LONG * c, MOST_ROWS))
    columns = next(fitting, COLUMNS[-1])
    rows = halves.size // columns
    table = halves[: rows * columns].reshape(rows, columns)
    rest = halves[rows * columns :].astype(mx.uint32)
    return [mx.sum(table, axis=0), mx.sum(table, axis=1), rest, *odd]  # sums of uint16 are uint32


def _mixed(words: mx.array) -> mx.array:
    words = (words ^ (words >> 16)) * mx.array(0x85EBCA6B, mx.uint32)
    words = (words ^ (words >> 13)) * mx.array(0xC2B2AE35, mx.uint32)
    return words ^ (words >> 16)


@lru_cache(maxsize=4)
def _layout(counts: tuple[int, ...]) -> tuple[mx.array, mx.array, mx.array]:
    """The place of each word in its array, spread over 32 bits; before and at its last word."""
    ends = np.cumsum(counts)
    starts = ends - counts
    places = np.arange(1 + ends[-1])
    places[1:] -= np.repeat(starts, counts)
    spread = (places * 0x9E3779B1 & 0xFFFFFFFF).astype(np.uint32)
    return mx.array(spread), mx.array(starts.astype(np.uint32)), mx.array(ends.astype(np.uint32))


@lru_cache(maxsize=4096)
def _kind(dtype: mx.Dtype, shape: tuple[int, ...]) -> int:
    return zlib.crc32(f"{dtype} {shape}".encode())


def replicated_parameters(model: Module) -> list[tuple[str, mx.array]]:
    """The parameters that are to be equal on all ranks, under MLX's names.

    Left out are those of layers that are sharded, and the running statistics of `BatchNorm`,
    which each rank takes of its own part of the batch.
    """
    modules = list(model.named_modules())
    sharded = tuple(f"{name}." if name else "" for name, m in modules if isinstance(m, SHARDED))
    running = {
        f"{name}.{key}".lstrip(".")
        for name, module in modules
        if isinstance(module, BatchNorm)
        for key in ("running_mean", "running_var")
    }
    named: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    return [
        (name, array)
        for name, array in named
        if not name.startswith(sharded) and name not in running
    ]


@dataclass(frozen=True)
class Difference:
    """Where replicas differ.

    Attributes
    ----------
    name
        The first parameter that differs.
    ranks
        The ranks where it is not as on most.
    parameters
        How many parameters differ.
    """

    name: str
    ranks: tuple[int, ...]
    parameters: int

    def __str__(self) -> str:
        *most, last = map(str, self.ranks)
        where = f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"
        rest = self.parameters - 1
        more = f" (and {rest} more parameter{'s' if rest > 1 else ''})" if rest else ""
        return f"replicas differ: {self.name} on {where}{more}"


def compare(names: Sequence[str], gathered: NDArray[np.uint32]) -> Difference | None:
    """Find out whether fingerprints of all ranks are equal.

    Parameters
    ----------
    names
        Of the parameters.
    gathered
        Their `fingerprints` by rank, of shape [ranks, parameters, 2].

    Returns
    -------
    Difference or None
        None where all are equal. Where as many ranks have one value as another, those that
        differ from rank 0 are named, or from the first of these ranks.
    """
    differing = np.flatnonzero((gathered != gathered[:1]).any(axis=(0, 2)))
    if not differing.size:
        return None
    first = int(differing[0])
    values = [tuple(value) for value in gathered[:, first].tolist()]
    usual = Counter(values).most_common(1)[0][0]  # of equally many, the one met first
    ranks = tuple(rank for rank, value in enumerate(values) if value != usual)
    return Difference(names[first], ranks, differing.size)


def copy_from(rank: int, containers: Any, group: Any) -> int:
    """Make the arrays of all ranks bit-equal to those of one rank; called on all ranks alike.

    The containers stay, what they hold is replaced once all of it has arrived. Numbers and
    whatever else is no array are left as they are.

    Parameters
    ----------
    rank
        Whose arrays.
    containers
        Modules, optimizers, dicts, lists, or a tuple of them.
    group : mlx.core.distributed.Group or None
        The ranks; None for this process alone.

    Returns
    -------
    int
        The number of arrays.

    Raises
    ------
    UsageError
        There is no such rank, there are sharded layers, or a rank has other arrays; nothing was
        changed, and all ranks raise.
    """
    refuse_copy(rank, containers, group)
    size = 1 if group is None else group.size()
    places = list(_places(containers, "", set()))
    if size == 1:
        return len(places)
    _require_same(rank, places, group)
    received = [_received(array, rank, group) for _, array in places]
    if group.rank() != rank:
        _exchange(containers, iter(received), set())
    return len(places)


def refuse_copy(rank: int, containers: Any, group: Any) -> None:
    """Raise where `copy_from` would, before anything is compared; called on all ranks alike."""
    agree(_refusal(rank, containers, 1 if group is None else group.size()), group)


def _refusal(rank: int, tree: Any, size: int) -> UsageError | None:
    if rank not in range(size):
        return UsageError(f"there is no rank {rank} to copy from; ranks are 0 to {size - 1}")
    if _is_loose(tree):
        return UsageError("an array cannot be replaced in itself; give the dict that holds it")
    for path in sharded_layers(tree):
        return UsageError(
            f"{path or 'the model'} is sharded over the ranks, so each has its own part and "
            "none can be copied to another; load a checkpoint instead"
        )
    return None


def sharded_layers(tree: Any) -> list[str]:
    """The paths of what is sharded over the ranks in a module or in containers."""
    return [path for path, value in _parts(tree, "", set()) if isinstance(value, SHARDED)]


def _is_loose(tree: Any) -> bool:
    return isinstance(tree, mx.array) or (isinstance(tree, tuple) and any(map(_is_loose, tree)))


def _parts(tree: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """All containers and arrays of a tree, in an order that is the same on all ranks."""
    yield path, tree
    for key, value in _items(tree, seen):
        yield from _parts(value, f"{path}.{key}" if path else str(key), seen)


def _places(tree: Any, path: str, seen: set[int]) -> Iterator[tuple[str, mx.array]]:
    return ((p, value) for p, value in _parts(tree, path, seen) if isinstance(value, mx.array))


def _items(tree: Any, seen: set[int]) -> list[tuple[Any, Any]]:
    inside = containers_of(tree) if isinstance(tree, optim.Optimizer) else tree
    if isinstance(inside, (dict, list)):
        if id(tree) in seen:
            return []
        seen.add(id(tree))
    if isinstance(inside, dict):
        return sorted(inside.items(), key=lambda item: str(item[0]))
    return list(enumerate(inside)) if isinstance(inside, (list, tuple)) else []


def _exchange(tree: Any, arrays: Iterator[mx.array], seen: set[int]) -> Any:
    """The tree with other arrays, in the order of `_parts`; dicts and lists stay what they are."""
    if isinstance(tree, mx.array):
        return next(arrays)
    new = [(key, value, _exchange(value, arrays, seen)) for key, value in _items(tree, seen)]
    changed = [(key, value) for key, old, value in new if value is not old]
    if not changed:
        return tree
    if isinstance(tree, tuple):
        values = [value for _, _, value in new]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    inside = containers_of(tree) if isinstance(tree, optim.Optimizer) else tree
    for key, value in changed:
        put(inside, key, value)
    return tree


def _require_same(rank: int, places: list[tuple[str, mx.array]], group: Any) -> None:
    """See that all ranks have arrays of the same names, dtypes and shapes."""
    mine = "\n".join(f"{path}\t{dtype_name(array)} {list(array.shape)}" for path, array in places)
    digest = np.frombuffer(hashlib.sha256(mine.encode()).digest(), np.uint8)
    digests = to_numpy(mx.distributed.all_gather(mx.array(digest[None]), group=group))
    if (digests == digests[0]).all():
        return
    by_rank = [
        dict(line.split("\t") for line in text.splitlines()) for text in gather_texts(mine, group)
    ]
    for other, forms in enumerate(by_rank):
        for path in [*by_rank[rank], *forms]:
            here, there = by_rank[rank].get(path, "not there"), forms.get(path, "not there")
            if here != there:
                raise UsageError(
                    f"{path} is {here} on rank {rank} and {there} on rank {other}: nothing was "
                    "copied; build the same model and optimizer on all ranks"
                )


def _received(array: mx.array, rank: int, group: Any) -> mx.array:
    """This array as `rank` has it: what the others add to its bits is 0."""
    if not array.size:
        return array
    sends = group.rank() == rank
    bits = UNSIGNED[array.dtype.size]
    flat = array.reshape(-1).view(bits) if sends else None
    pieces = []
    step = CHUNK // array.dtype.size
    for start in range(0, array.size, step):
        stop = min(start + step, array.size)
        mine = mx.zeros(stop - start, bits) if flat is None else flat[start:stop]
        piece = mx.distributed.all_sum(mine, group=group)
        mx.eval(piece)
        if not sends:
            pieces.append(piece)
    if sends:
        return array
    whole = mx.concatenate(pieces).view(array.dtype).reshape(array.shape)
    mx.eval(whole)
    return whole
