"""Which part of a training step a node belongs to: forward, backward, or the optimizer's update."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Graph, Phase

Nodes = NDArray[np.bool_]

_MODULE, _GRADIENT, _AGAIN = 1, 2, 4


def phases(
    graph: Graph, module: Nodes, updated: Nodes, gradient: Nodes, held: Nodes
) -> NDArray[np.uint8]:
    """A `Phase` for each node. uint8 [nodes]

    A loss is a scalar output that needs modules and no gradient. Forward is what losses need, and
    what modules computed besides (running statistics, a loss that is not returned), but not what a
    checkpoint computes again. Backward is the rest of what gradients need. Neither looks through
    an update of the optimizer, so a second loss in the same step has its own two phases.

    Parameters
    ----------
    module : bool [nodes]
        What was made while a module was called, as far as that was watched.
    updated : bool [nodes]
        What was made by an optimizer.
    gradient : bool [nodes]
        What an optimizer was given; without any, outputs that may be gradients are looked for.
    held : bool [nodes]
        Parameters and buffers of modules.
    """
    flags = _needs(graph, module | held, updated, gradient)
    if not gradient.any():
        gradient = _like_parameters(graph, module | updated, held, flags)
        flags = _needs(graph, module | held, updated, gradient)
    phase = np.full(graph.nodes, Phase.FORWARD, np.uint8)
    computed = graph.primitive != 0
    backward = ancestors(graph, np.flatnonzero(gradient).tolist(), updated)
    losses = [
        int(graph.node[array])
        for array in graph.outputs.tolist()
        if flags[graph.node[array]] & (_MODULE | _GRADIENT) == _MODULE
        and _may_be_loss(graph, array)
    ]
    if not losses and not module.any():  # a step that gives no loss, and was not watched
        phase[updated] = Phase.OPTIMIZER
        return phase
    # The norm that gradients are clipped by comes before them, as few losses do.
    losses = [node for node in losses if not backward[node]] or losses
    forward = module & ((flags & _AGAIN) == 0)
    forward[losses] = True
    ends = updated | gradient
    forward = ancestors(graph, np.flatnonzero(forward & ~ends).tolist(), ends)
    phase[backward & ~forward & computed] = Phase.BACKWARD
    phase[updated] = Phase.OPTIMIZER
    _continued(graph, phase, computed & ~(forward | backward | updated | module))
    return phase


def _may_be_loss(graph: Graph, array: int) -> bool:
    return graph.shape(array) == () and graph.dtype_name(array).startswith(("float", "bfloat"))


def depending(graph: Graph) -> Nodes:
    """What a checkpoint makes its inputs of when it computes them again. bool [nodes]"""
    return np.array([name == "Depends" for name in graph.primitives])[graph.primitive]


def _needs(graph: Graph, module: Nodes, updated: Nodes, gradient: Nodes) -> NDArray[np.uint8]:
    """What each node needs, not looking through updates: flags. uint8 [nodes]"""
    again = depending(graph)
    own = module * _MODULE + gradient * _GRADIENT + again * _AGAIN
    flags: list[int] = own.tolist()
    ends: list[bool] = updated.tolist()
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    for node, first in enumerate(start[:-1]):
        if ends[node]:
            flags[node] = 0
            continue
        found = flags[node]
        for source in sources[first : start[node + 1]]:
            found |= flags[source]
        flags[node] = found
    return np.array(flags, np.uint8)


def _like_parameters(graph: Graph, noted: Nodes, held: Nodes, flags: NDArray[np.uint8]) -> Nodes:
    """Outputs that may be gradients: of a parameter's shape, and made outside of modules."""
    if not any(_may_be_loss(graph, array) for array in graph.outputs.tolist()):
        return np.zeros(graph.nodes, bool)
    shapes = {
        graph.shape(array)
        for node in np.flatnonzero(held).tolist()
        for array in graph.outputs_of(node)
    }
    found = np.zeros(graph.nodes, bool)
    for array in graph.outputs.tolist():
        node = int(graph.node[array])
        shape = graph.shape(array)
        if flags[node] & _MODULE and not noted[node] and shape != () and shape in shapes:
            found[node] = True
    return found


def _continued(graph: Graph, phase: NDArray[np.uint8], rest: Nodes) -> None:
    """What is made of gradients and updates (norms, averages of weights) counts with them."""
    start, sources = graph.input_start, graph.sources
    for node in np.flatnonzero(rest).tolist():
        taken = sources[start[node] : start[node + 1]]
        if len(taken):
            phase[node] = phase[taken].max()


def ancestors(graph: Graph, nodes: Iterable[int], ends: Nodes) -> Nodes:
    """What some nodes need, themselves included, up to other nodes, without those. bool [nodes]"""
    waiting = list(nodes)
    found: list[bool] = [False] * graph.nodes
    for node in waiting:
        found[node] = True
    closed: list[bool] = ends.tolist()
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    while waiting:
        node = waiting.pop()
        for source in sources[start[node] : start[node + 1]]:
            if not found[source] and not closed[source]:
                found[source] = True
                waiting.append(source)
    return np.array(found, bool)
