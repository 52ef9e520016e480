"""A captured graph: flat arrays, so that a hundred thousand nodes are read, sent and drawn quickly.

A *node* is a primitive with all its outputs, or an array that nothing computes (an input, a
parameter, a constant). *Arrays* are the outputs of nodes; edges go from arrays to nodes. Nodes
stand in an order in which each comes after what it needs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int32]
Sizes = NDArray[np.int64]

COLLECTIVES = {
    "Sum AllReduce": "all_sum",
    "Max AllReduce": "all_max",
    "Min AllReduce": "all_min",
    "AllGather": "all_gather",
    "Sum ReduceScatter": "sum_scatter",
    "Send": "send",
    "Recv": "recv",
}


class Status(IntEnum):
    """What MLX knows of an array (``mlx/array.h``)."""

    UNSCHEDULED = 0
    EVALUATED = 1  # it has memory; it may still be computed
    AVAILABLE = 2


class Phase(IntEnum):
    """Which part of a training step a node belongs to."""

    FORWARD = 0
    BACKWARD = 1
    OPTIMIZER = 2


@dataclass(frozen=True)
class Scope:
    """A module that nodes belong to.

    Attributes
    ----------
    path
        As ``layers.3.attention``; "" is the model itself, or no module at all.
    kind
        Name of the module's class; "" where it is not known.
    """

    path: str
    kind: str = ""

    @property
    def parents(self) -> Iterator[str]:
        """The paths of the scopes around it, outermost first, without the root."""
        parts = self.path.split(".")
        return (".".join(parts[:end]) for end in range(1, len(parts)))


@dataclass(frozen=True)
class Graph:
    """What lazy arrays are computed from.

    Attributes
    ----------
    primitive, arguments : int32 [nodes]
        Indices into `primitives` ("" for what nothing computes) and `texts`.
    device : uint8 [nodes]
        0 for the CPU, 1 for the GPU.
    stream : int32 [nodes]
        MLX's number of the stream; -1 for what nothing computes.
    scope : int32 [nodes]
        Index into `scopes`.
    phase : uint8 [nodes]
        A `Phase`.
    output_start : int32 [nodes + 1]
        Where the arrays of each node begin; they follow one another.
    input_start : int32 [nodes + 1]
        Where the inputs of each node begin in `inputs`.
    inputs : int32 [edges]
        Arrays, in the order that the primitive takes them.
    node : int32 [arrays]
        The node that an array is an output of.
    dtype : int32 [arrays]
        Index into `dtypes`.
    shape_start : int32 [arrays + 1], extents : int64
        The shapes, one after the other.
    nbytes : int64 [arrays]
        Logical size: a broadcast array has that of all its elements.
    status : uint8 [arrays]
        A `Status`.
    held : int32 [arrays]
        Handles outside the graph, Python's and those of this capture; such an array stays.
    buffer : uint64 [arrays], buffer_bytes : int64 [arrays]
        Memory that an evaluated array has: address and size; 0 where there is none.
    id : uint64 [arrays]
        MLX's own, of this process at the time of the capture.
    outputs : int32 [outputs]
        The arrays that were asked for.
    primitives, dtypes, texts : tuple of str
        What the indices above mean.
    scopes : tuple of Scope
        The first is the root.
    names : dict of int to str
        What the user calls arrays: variables, and paths of parameters and optimizer state.
    fused : dict of int to tuple of str
        For nodes that `mx.compile` has fused, the primitives inside, in order.
    title
        What was captured, as typed.
    complete
        Whether shapes and dtypes are known; without the native module only names and edges are.
    seconds
        That capturing it took, with what the user's function did; 0 where nobody measured it.
    hint
        One sentence for the user of what the graph does not show, and how to see it; "" for none.
    """

    primitive: Indices
    arguments: Indices
    device: NDArray[np.uint8]
    stream: Indices
    scope: Indices
    phase: NDArray[np.uint8]
    output_start: Indices
    input_start: Indices
    inputs: Indices
    node: Indices
    dtype: Indices
    shape_start: Indices
    extents: Sizes
    nbytes: Sizes
    status: NDArray[np.uint8]
    held: Indices
    buffer: NDArray[np.uint64]
    buffer_bytes: Sizes
    id: NDArray[np.uint64]
    outputs: Indices
    primitives: tuple[str, ...]
    dtypes: tuple[str, ...]
    texts: tuple[str, ...]
    scopes: tuple[Scope, ...] = (Scope(""),)
    names: Mapping[int, str] = field(default_factory=dict)
    fused: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    title: str = ""
    complete: bool = True
    seconds: float = 0.0
    hint: str = ""

    def __repr__(self) -> str:
        """One line: what was captured and how large it is."""
        collectives = Counter(map(self.collective, range(self.nodes)))
        del collectives[""]
        computed = int((self.primitive != 0).sum())
        parts = [
            f"{computed:,} operation{'' if computed == 1 else 's'}",
            f"{self.nodes - computed:,} inputs and constants",
            *(f"{count:,} × {name}" for name, count in collectives.items()),
        ]
        return f"<Graph {' '.join(self.title.split()) or 'without a title'}: {', '.join(parts)}>"

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.primitive)

    @property
    def arrays(self) -> int:
        """How many arrays there are."""
        return len(self.node)

    @property
    def edges(self) -> int:
        """How many edges there are."""
        return len(self.inputs)

    def outputs_of(self, node: int) -> range:
        """The arrays that a node computes."""
        return range(int(self.output_start[node]), int(self.output_start[node + 1]))

    def inputs_of(self, node: int) -> Indices:
        """The arrays that a node takes, in order."""
        return self.inputs[self.input_start[node] : self.input_start[node + 1]]

    @cached_property
    def _users(self) -> tuple[Indices, Indices]:
        order = np.argsort(self.inputs, kind="stable")
        users = np.repeat(np.arange(self.nodes, dtype=np.int32), np.diff(self.input_start))[order]
        start = np.searchsorted(self.inputs[order], np.arange(self.arrays + 1))
        return start.astype(np.int32), users

    def users_of(self, array: int) -> Indices:
        """The nodes that take an array, in order; one that takes it twice stands there twice."""
        start, users = self._users
        return users[start[array] : start[array + 1]]

    @cached_property
    def sources(self) -> Indices:
        """The node at the beginning of each edge. int32 [edges]"""
        return self.node[self.inputs]

    @cached_property
    def targets(self) -> Indices:
        """The node at the end of each edge. int32 [edges]"""
        return np.repeat(np.arange(self.nodes, dtype=np.int32), np.diff(self.input_start))

    def shape(self, array: int) -> tuple[int, ...]:
        """The shape of an array."""
        return tuple(self.extents[self.shape_start[array] : self.shape_start[array + 1]].tolist())

    def dtype_name(self, array: int) -> str:
        """The dtype of an array, as ``float32``."""
        return self.dtypes[int(self.dtype[array])]

    def primitive_name(self, node: int) -> str:
        """MLX's name of a node's primitive; "" for what nothing computes."""
        return self.primitives[int(self.primitive[node])]

    def arguments_text(self, node: int) -> str:
        """The arguments of a node's primitive, as ``axis=1``; "" where MLX does not tell."""
        return self.texts[int(self.arguments[node])]

    def is_input(self, node: int) -> bool:
        """Whether nothing computes it."""
        return int(self.primitive[node]) == 0

    def collective(self, node: int) -> str:
        """The function of ``mx.distributed`` that a node is, as ``all_sum``; "" for others."""
        return COLLECTIVES.get(self.primitive_name(node), "")

    def name(self, node: int) -> str:
        """The user's name for one of a node's outputs; "" where there is none."""
        return next((self.names[a] for a in self.outputs_of(node) if a in self.names), "")

    def label(self, node: int) -> str:
        """What to write on a node: its collective, primitive, name, or kind of input."""
        if self.is_input(node):
            return self.name(node) or "constant"
        if node in self.fused:
            return "Compiled"
        return self.collective(node) or self.primitive_name(node)

    def describe(self, array: int) -> str:
        """An array in a few words: ``float32 [4, 8]``."""
        if not self.complete:
            return ""
        return f"{self.dtype_name(array)} {list(self.shape(array))}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, as ``g.json``, which `load` reads: see `saved.save`."""
        from mlxbench_kernel.graph.saved import save  # which needs this module

        save(self, path)

    def with_(self, **changes: object) -> Graph:
        """This graph with other values for some of its attributes."""
        return replace(self, **changes)  # type: ignore[arg-type]
