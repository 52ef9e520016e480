"""What can be told of a training step whose modules and optimizer were not seen at work.

A step of ``mx.compile`` is made of arrays of its own (``compile_replace`` in mlx/compile.cpp), and
Python is not called again for them. But parameters and the optimizer's state are known arrays.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Graph, Indices

NEW = " (new)"  # how a capture calls what a call has made of an array

_INDEX = re.compile(r"\[(\d+)\]")


def updates(graph: Graph, held: Indices) -> NDArray[np.bool_]:
    """What the optimizer computes: all that its state is needed for. bool [nodes]

    It ends where new parameters are made, from which another loss may be computed.

    Parameters
    ----------
    held : int32 [nodes]
        The scopes of parameters; -1 for everything else.
    """
    parameters = {
        _plain(name) for array, name in graph.names.items() if held[graph.node[array]] >= 0
    }
    # Several models: "teacher.layers.0.weight" in the names, "layers.0.weight" in the state.
    parameters |= {name.partition(".")[2] for name in parameters}
    found = np.zeros(graph.nodes, bool)
    ends = np.zeros(graph.nodes, bool)
    for array, name in graph.names.items():
        node = int(graph.node[array])
        if name.endswith(NEW):
            ends[node] |= _plain(name.removesuffix(NEW)) in parameters
        elif graph.is_input(node) and held[node] < 0:
            found[node] = _is_state(graph, array, _plain(name), parameters)
    if not found.any():
        return found
    needs, stop = found.tolist(), ends.tolist()
    start, sources = graph.input_start.tolist(), graph.sources.tolist()
    for node, first in enumerate(start[:-1]):
        if not needs[node]:
            needs[node] = any(
                needs[source] and not stop[source] for source in sources[first : start[node + 1]]
            )
    return np.array(needs, bool)


def _is_state(graph: Graph, array: int, name: str, parameters: set[str]) -> bool:
    """Whether it is what MLX's optimizers keep: of each parameter, and of themselves."""
    if name == "step":
        return graph.shape(array) == () and graph.dtype_name(array) == "uint64"
    return name == "learning_rate" or name.rpartition(".")[0] in parameters


def _plain(name: str) -> str:
    return _INDEX.sub(r".\1", name)


def gradients(graph: Graph, held: Indices, updated: NDArray[np.bool_], none: int) -> Indices:
    """What an update takes that is neither state nor a parameter, as scopes of its parameter.

    Returns
    -------
    int32 [nodes]
        -1 where the parameter is not known, `none` for what is no gradient.
    """
    found = np.full(graph.nodes, none, np.int32)
    into = updated[graph.targets] & ~updated[graph.sources] & (graph.primitive[graph.sources] != 0)
    into &= held[graph.sources] < 0
    found[graph.sources[into]] = -1
    of_parameter = updated[graph.targets] & (held[graph.sources] >= 0)
    scope = np.full(graph.nodes, -1, np.int32)
    scope[graph.targets[of_parameter]] = held[graph.sources[of_parameter]]
    found[graph.sources[into]] = np.maximum(found[graph.sources[into]], scope[graph.targets[into]])
    return found
