"""What holds the memory of a process, as flat lists that can be sent, kept and compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

NONE, UNKNOWN = -1, -2  # instead of a node; also in native/buffers.h


_REST = ("unattributed", "cache")


@dataclass(frozen=True)
class Holdings:
    """A tree of names with the memory that each holds; all lists are plain, so JSON can take it.

    Nodes are numbered in an order in which each comes after its parent, and with them run
    `labels`, `parents`, `kinds`, `own`, `bytes`, `shared`, `host`, `nodes`, `types` and `shapes`.
    Real buffers are counted, each once, at the first who holds it: parameters before the state
    of optimizers, KV caches, other variables, lazy graphs, kept states, and IPython's own.

    Attributes
    ----------
    labels, parents
        Of each node its last name, ``"weight"``, and the node above; -1 for a variable.
    kinds
        ``"parameters"`` (what modules hold), ``"optimizer"``, ``"kv cache"`` (of mlx_lm),
        ``"gradients"`` (trees in variables with "grad" in their name), ``"variables"``,
        ``"graph"`` (an array that is not evaluated: what it keeps alive), ``"snapshots"`` (of
        `HOLDERS`), ``"history"`` (IPython's results, the last error), ``"unattributed"``,
        ``"cache"``.
    own, bytes
        Bytes of MLX's buffers that count for the node itself, and with all below it.
    shared
        Bytes of buffers that it leads to as well, which count elsewhere.
    host
        Bytes beside MLX: of NumPy arrays and ``bytes``, with all below; also of memory that MLX
        did not allocate itself.
    nodes
        Nodes of lazy graphs behind it, with all below; each counted once, at the first.
    types, shapes
        Dtype and shape of an array, ``"float32"`` and ``[3, 4]``; of others the class and None.
    same
        Nodes that are the very object of another node: ``[node, other]``.
    held_by, held
        Pairs: this node leads to the buffer with this number, itself or by its graph.
    buffer_bytes, first, second
        Of each buffer its size; the variables (nodes) that hold it, at most two of them: -1 for
        no other one, -2 for what is not known: MLX or Python count more references than were found.
    active, cache
        MLX's counters at that moment, in bytes.
    graphs
        Whether graphs were looked behind. Without that, what they hold is unattributed, and
        `freeable` may promise too much.
    stopped
        Where something was left out, in words; empty if all was seen.
    seconds
        That it took.
    """

    labels: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    shapes: list[list[int] | None] = field(default_factory=list)
    same: list[list[int]] = field(default_factory=list)
    held_by: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    buffer_bytes: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    active: int = 0
    cache: int = 0
    graphs: bool = True
    stopped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @cached_property
    def paths(self) -> list[str]:
        """Of each node its whole name, ``"model.layers.3.weight"``."""
        found: list[str] = []
        for label, parent in zip(self.labels, self.parents, strict=True):
            found.append(label if parent < 0 else f"{found[parent]}.{label}")
        return found

    def children(self, node: int = NONE) -> list[int]:
        """The nodes right below a node, the largest first; variables and the like by default."""
        below = [each for each, parent in enumerate(self.parents) if parent == node]
        return sorted(below, key=lambda each: (-self.bytes[each], -self.host[each]))

    @property
    def unattributed(self) -> int:
        """Bytes that MLX has handed out and nobody was found to hold."""
        owned = (size for size, kind in zip(self.own, self.kinds, strict=True) if kind not in _REST)
        return max(self.active - sum(owned), 0)

    def by_kind(self) -> dict[str, int]:
        """Bytes by kind; they add up to `active` and `cache`."""
        found: Counter[str] = Counter()
        for kind, own in zip(self.kinds, self.own, strict=True):
            found[kind] += own
        return {kind: size for kind, size in found.items() if size}

    def find(self, path: str) -> int:
        """The node with a whole name.

        Raises
        ------
        KeyError
            There is none.
        """
        try:
            return self.paths.index(path)
        except ValueError:
            raise KeyError(path) from None

    def shared_with(self, node: int) -> dict[int, int]:
        """Which nodes outside hold buffers that a node and those below it hold, and how many bytes.

        Returns
        -------
        dict
            Bytes by node, most first; only nodes that hold an array themselves.
        """
        below = self._below(node)
        mine = {buffer for by, buffer in zip(self.held_by, self.held, strict=True) if by in below}
        found: Counter[int] = Counter()
        for by, buffer in set(zip(self.held_by, self.held, strict=True)):
            if buffer in mine and by not in below:
                found[by] += self.buffer_bytes[buffer]
        return dict(found.most_common())

    def _below(self, node: int) -> set[int]:
        below = {node}
        for each in range(node + 1, len(self.parents)):
            if self.parents[each] in below:
                below.add(each)
        return below | {other for again, other in self.same if again in below}

    def to_dict(self) -> dict[str, Any]:
        """As a dict of its own lists that JSON can take; ``Holdings(**d)`` makes it again."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
