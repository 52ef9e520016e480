"""The largest variables of a rank, found without evaluating or disturbing anything.

A walk may run in a thread beside the one that runs cells. What it costs is bounded, and it looks
only where looking runs nobody's code (`mlxbench_kernel.memory.walk`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mlxbench_kernel import native
from mlxbench_kernel.memory import contents
from mlxbench_kernel.memory.walk import Walk

COUNT = 5
LEAST = 10_000  # bytes; less is not worth a name
SECONDS = 0.02
OBJECTS = 20_000
TEXT = 60  # characters of a name or kind


@dataclass(frozen=True)
class Held:
    """What one variable holds.

    Attributes
    ----------
    name
        The variable.
    bytes
        Of the buffers that it leads to and no variable named before it does.
    kind
        Dtype and shape of an array, ``"float32 (3, 4)"``, else the name of its type.
    """

    name: str
    bytes: int
    kind: str


def largest(
    namespace: Mapping[str, Any],
    hidden: Collection[str] = (),
    *,
    seconds: float = SECONDS,
    objects: int = OBJECTS,
) -> list[Held]:
    """The variables that hold most: at most `COUNT`, each at least `LEAST` bytes, largest first.

    Real buffers are counted, each once: a view costs nothing beside its array, and an array that
    is not evaluated nothing at all. Without the native module MLX arrays count as nothing, since
    all that MLX itself offers would change them under the thread that uses them.

    Parameters
    ----------
    namespace
        Variables by name; it may change meanwhile.
    hidden
        Names that were not given by the user. They come last, as ``IPython``, so that what ``Out``
        holds is counted there only where no variable has it.
    seconds, objects
        After that much time, or that many objects, the rest is left out.
    """
    walk = Walk(seconds, objects)
    walk.variables(namespace, hidden, holders=False)
    roots = walk.roots()
    sizes: Counter[int] = Counter()
    for node, size in walk.host:
        sizes[roots[node]] += size
    counted: set[int] = set()
    for node, (buffer, size) in zip(walk.places, _buffers(walk.arrays), strict=True):
        if buffer not in counted:
            counted.add(buffer)
            sizes[roots[node]] += size
    names = {root: contents.label(walk.rows[root][0]) for root, _ in sizes.most_common(COUNT)}
    return [
        Held(name[:TEXT], sizes[root], _kind(namespace.get(name)) or walk.rows[root][3][:TEXT])
        for root, name in names.items()
        if sizes[root] >= LEAST
    ]


def _buffers(arrays: list[Any]) -> list[tuple[int, int]]:
    module = native.load()
    if module is None:
        return [(0, 0)] * len(arrays)
    found: list[tuple[int, int]] = module.buffers(arrays)
    return found


def _kind(value: Any) -> str:
    """Dtype and shape of an array."""
    import mlx.core as mx
    import numpy as np

    if not issubclass(type(value), (mx.array, np.ndarray)):
        return ""
    return f"{str(value.dtype).removeprefix('mlx.core.')} {tuple(value.shape)}"[:TEXT]
