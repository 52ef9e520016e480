"""Which colour each box of a view has, and what the colours mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.hierarchy import Hierarchy, Visible
from mlxbench_kernel.graph.merging import State
from mlxbench_kernel.graph.model import COLLECTIVES, Graph, Indices
from mlxbench_kernel.units import quantity

Named = Literal["kind", "bytes", "device", "dtype", "module"]
Values = NDArray[np.float64]
States = NDArray[np.int8]
Colour = Named | Values | States

CATEGORIES, STEPS = 12, 16  # colours of the two palettes
GROUP = CATEGORIES - 1  # the last one is grey: groups, and whatever has no colour of its own

# Grey, green, red and yellow of the palette.
_STATES = {State.SAME: GROUP, State.ADDED: 2, State.REMOVED: 5, State.CHANGED: 8}

# What primitives do (mlx/primitives.h, mlx/fast_primitives.h); elementwise is what is left.
_FAMILIES = {
    "matmul, convolution": "Matmul AddMM BlockMaskedMM GatherMM SegmentedMM QuantizedMatmul "
    "GatherQMM QQMatmul Convolution Conv",
    "attention, normalization": "ScaledDotProductAttention ScaledDotProductAttentionVJP RMSNorm "
    "RMSNormVJP LayerNorm LayerNormVJP RoPE Softmax LogSumExp",
    "reduction": "Sum Prod Min Max And Or All Any Mean ArgReduce ArgMin ArgMax Scan CumSum "
    "CumProd Reduce",
    "shape": "Broadcast BroadcastAxes Reshape Flatten Unflatten Transpose ExpandDims Squeeze "
    "Concatenate Split Slice Pad AsStrided AsType View Copy Contiguous Full Arange "
    "StopGradient NumberOfElements Depends",
    "indexing, sorting": "Gather GatherAxis Scatter ScatterAxis SliceUpdate DynamicSlice "
    "DynamicSliceUpdate MaskedScatter Sort ArgSort Partition ArgPartition SearchSorted",
    "random": "RandomBits",
    "linear algebra, FFT": "FFT Hadamard QRF SVD Inverse Cholesky Eig Eigh LUF",
}
_KINDS = ("input", *_FAMILIES, "elementwise", "compiled", "collective")
_FAMILY_OF = {name: kind for kind, names in _FAMILIES.items() for name in names.split()}


@dataclass(frozen=True)
class Colouring:
    """Swatches for items, as `Scene` has them.

    Attributes
    ----------
    swatch : uint8 [items]
    palette
        "categorical" or "sequential".
    legend : tuple of (str, int)
        What the swatches mean.
    """

    swatch: NDArray[np.uint8]
    palette: str
    legend: tuple[tuple[str, int], ...]


def colour_items(
    graph: Graph,
    hierarchy: Hierarchy,
    seen: Visible,
    colour: Colour,
    items: Indices,
    unit: str = "",
) -> Colouring:
    """Colours for what is seen.

    Parameters
    ----------
    graph, hierarchy, seen
        The graph, its groups, and what is seen of them.
    colour
        ``kind`` (what primitives do), ``bytes`` (of the outputs), ``device``, ``dtype``,
        ``module`` (class of the innermost module), or a value ≥ 0 per node, as FLOPs or seconds:
        float64 [nodes]. Values are summed over groups and shown on a logarithmic scale. Or a
        `State` of each node, as `GraphDiff.merged` gives them: int8 [nodes].
    items : int32 [items]
        Nodes, and -1 - number for groups; open groups too.
    unit
        Of values that are given, for the legend.

    Raises
    ------
    UsageError
        There is no such colour, or not one value per node.
    """
    names: tuple[str, ...]
    if not isinstance(colour, str) and colour.dtype == np.int8:
        return _by_state(hierarchy, colour.astype(np.int8), items)
    if not isinstance(colour, str):
        return _sequential(hierarchy, seen, np.asarray(colour, np.float64), items, unit)
    if colour == "bytes":
        return _sequential(hierarchy, seen, output_bytes(graph), items, "B")
    if colour == "kind":
        return _by_kind(graph, items)
    if colour == "device":
        names, of_node = ("CPU", "GPU"), graph.device.astype(np.int32)
    elif colour == "dtype":
        names, of_node = graph.dtypes, graph.dtype[graph.output_start[:-1]]
    elif colour == "module":
        kinds = [scope.kind or scope.path or "no module" for scope in graph.scopes]
        names = tuple(dict.fromkeys(kinds))
        index = {name: number for number, name in enumerate(names)}
        of_node = np.array([index[kind] for kind in kinds], np.int32)[graph.scope]
    else:
        raise UsageError(
            f"no colour {colour!r}: type 'kind', 'bytes', 'device', 'dtype' or 'module', "
            "or give one value per node"
        )
    return _categorical(hierarchy, names, of_node, items)


def output_bytes(graph: Graph) -> Values:
    """The logical size of what each node computes; 0 for inputs. float64 [nodes]"""
    total = np.bincount(graph.node, weights=graph.nbytes, minlength=graph.nodes)
    return np.where(graph.primitive == 0, 0.0, total)


def _by_kind(graph: Graph, items: Indices) -> Colouring:
    swatches = [_kind(name) for name in graph.primitives]
    node = np.maximum(items, 0)
    swatch = np.full(len(items), GROUP, np.uint8)
    if graph.nodes:
        of_node = np.array(swatches, np.uint8)[graph.primitive]
        of_node[list(graph.fused)] = _KINDS.index("compiled")
        swatch = np.where(items >= 0, of_node[node], GROUP).astype(np.uint8)
    used = set(swatch.tolist())
    legend = [(name, number) for number, name in enumerate(_KINDS) if number in used]
    return Colouring(swatch, "categorical", (*legend, *([("group", GROUP)] * (GROUP in used))))


def _by_state(hierarchy: Hierarchy, states: States, items: Indices) -> Colouring:
    """A group in which not all has become the same is changed, if anything in it has."""
    group = np.maximum(-1 - items, 0)
    of_group = np.full(len(hierarchy), State.CHANGED, np.int8)
    for state in State:
        all_of_it = hierarchy.total((states == state).astype(np.float64)) == hierarchy.count
        of_group[all_of_it] = state
    of_item = np.where(items >= 0, states[np.maximum(items, 0)], of_group[group])
    swatch = np.array([_STATES[state] for state in State], np.uint8)[of_item]
    legend = [(state.name.lower(), _STATES[state]) for state in State]
    return Colouring(swatch, "categorical", tuple(legend))


def _kind(primitive: str) -> int:
    if not primitive:
        return _KINDS.index("input")
    if primitive in COLLECTIVES:
        return _KINDS.index("collective")
    if primitive.startswith("Compiled"):
        return _KINDS.index("compiled")
    # "ScatterAxis Sum" is a scatter, "CumSum Scan" may go by either word.
    words = (primitive, primitive.split()[0], primitive.split()[-1])
    return _KINDS.index(next((_FAMILY_OF[w] for w in words if w in _FAMILY_OF), "elementwise"))


def _categorical(
    hierarchy: Hierarchy, names: tuple[str, ...], of_node: Indices, items: Indices
) -> Colouring:
    """The most frequent values have colours of their own; a group has that of most of its nodes."""
    times = np.bincount(of_node, minlength=len(names))
    shown = [int(value) for value in np.argsort(-times, kind="stable") if times[value]]
    swatches = np.full(len(names), GROUP, np.uint8)
    own = shown[:CATEGORIES] if len(shown) <= CATEGORIES else shown[:GROUP]
    swatches[own] = np.arange(len(own))
    most = np.zeros(len(hierarchy), np.int64)
    best = np.full(len(hierarchy), -1.0)
    for value in shown[:50]:
        count = hierarchy.total((of_node == value).astype(np.float64))
        most, best = np.where(count > best, value, most), np.maximum(count, best)
    group = np.maximum(-1 - items, 0)
    of_item = np.where(items >= 0, of_node[np.maximum(items, 0)], most[group])
    legend = [(names[each], int(swatches[each])) for each in own]
    rest = [("other", GROUP)] if len(own) < len(shown) else []
    return Colouring(swatches[of_item], "categorical", (*legend, *rest))


def _sequential(
    hierarchy: Hierarchy, seen: Visible, values: Values, items: Indices, unit: str
) -> Colouring:
    """From the smallest to the largest that is seen, in equal factors; nothing is the first."""
    if values.shape != hierarchy.group.shape:
        raise UsageError(
            f"values of shape {list(values.shape)} for {len(hierarchy.group)} nodes: "
            "give one number per node"
        )
    values = np.nan_to_num(np.maximum(values, 0.0), posinf=1e300)
    # A node counts where it is seen: a constant within its user.
    at_node = seen.item_of >= 0
    shown = np.bincount(seen.item_of[at_node], weights=values[at_node], minlength=len(values))
    totals = hierarchy.total(values)
    group = np.maximum(-1 - items, 0)
    value = np.where(items >= 0, shown[np.maximum(items, 0)], totals[group])
    some = value > 0
    if not some.any():
        return Colouring(np.zeros(len(items), np.uint8), "sequential", ((f"0 {unit}".strip(), 0),))
    low, high = np.log10(value[some].min()), np.log10(value[some].max())
    span = max(float(high - low), 1e-9)
    step = np.zeros(len(items), np.float64)
    step[some] = 1 + (np.log10(value[some]) - low) / span * (STEPS - 2)
    ticks = sorted({1, STEPS // 2, STEPS - 1})
    legend = [
        (f"{quantity(10 ** (low + (each - 1) / (STEPS - 2) * span))}{unit}".strip(), each)
        for each in ticks
    ]
    return Colouring(np.rint(step).astype(np.uint8), "sequential", tuple(legend))
