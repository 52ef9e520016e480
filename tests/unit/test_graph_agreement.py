"""Whether ranks agree: collectives in the order of evaluation, and messages that find each other.

Alone, MLX makes no collectives, so here operations of the same shape stand for them; with real
ranks `tests/cluster/test_graph_magic.py` asks the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlxbench_kernel.graph import Graph, agreement, capture, out_of_step, read
from mlxbench_kernel.graph.collective_order import collectives

X, Y = mx.ones(3), mx.ones(3)
mx.eval(X, Y)


def send(x: mx.array) -> mx.array:
    return mx.arctan(x)


def recv(size: int = 3, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.arange(size, dtype=dtype)


def all_sum(x: mx.array) -> mx.array:
    return mx.arcsinh(x)


def all_max(x: mx.array) -> mx.array:
    return mx.arccosh(x)


def rank_graph(outputs: Sequence[mx.array], to: int = 0, source: int = 0) -> Graph:
    """What a rank would have captured that sends to one rank and receives from another."""
    graph = read(list(outputs))
    roles = {"ArcTan": "Send", "Arange": "Recv", "ArcSinh": "Sum AllReduce",
             "ArcCosh": "Max AllReduce"}  # fmt: skip
    texts = {"ArcTan": f"to={to}", "Arange": f"from={source}"}
    arguments = graph.arguments.copy()
    for node in range(graph.nodes):
        if graph.primitive_name(node) in texts:
            arguments[node] = len(graph.texts) + list(texts).index(graph.primitive_name(node))
    return graph.with_(
        primitives=tuple(roles.get(name, name) for name in graph.primitives),
        texts=(*graph.texts, *texts.values()),
        arguments=arguments,
    )


def said(*graphs: Graph) -> str:
    line, _ = agreement(dict(enumerate(graphs)))
    assert "\n" not in line
    return line


def test_a_pipeline_agrees() -> None:
    first = rank_graph([send(mx.exp(X))], to=1)
    last = rank_graph([mx.exp(recv()) * 2], source=0)
    assert said(first, last).endswith("their collectives agree")
    assert out_of_step({0: first, 1: last}) == ""


def test_a_receive_that_nobody_sends() -> None:
    first, last = rank_graph([mx.exp(X)]), rank_graph([mx.exp(recv())], source=0)
    line = said(first, last)
    assert line.startswith(
        "the ranks do not agree: rank 1 would wait for ever for what rank 0 does not send it"
    )
    assert "recv of float32 [3]" in line
    assert "rank 1 would wait for ever" in out_of_step({0: first, 1: last})


def exchange(own: mx.array, receive_first: bool, peer: int) -> Graph:
    """Both ranks send and receive; what comes first is evaluated first."""
    got = recv()
    if receive_first:
        return rank_graph([send(got + own)], to=peer, source=peer)
    return rank_graph([mx.exp(recv()), send(own)], to=peer, source=peer)


def test_two_ranks_that_both_receive_first() -> None:
    line = said(exchange(X, True, 1), exchange(X, True, 0))
    assert "rank 0 would wait for ever" in line
    assert "before its own recv from rank 0 (node" in line and "is through" in line
    # One of them sends first, and all is well.
    sends_first = rank_graph([send(X), recv() * 2], to=0, source=0)
    assert "agree" in said(exchange(X, True, 1), sends_first)


def test_what_is_received_is_not_what_is_sent() -> None:
    first = rank_graph([send(mx.exp(X))], to=1)
    for size, dtype, told in (
        (4, mx.float32, "receives float32 [4] from rank 0, which sends it float32 [3]"),
        (3, mx.int32, "receives int32 [3] from rank 0, which sends it float32 [3]"),
    ):
        last = rank_graph([recv(size, dtype) * 2], source=0)
        assert f"rank 1 {told}" in said(first, last)
    # As many bytes as are sent: all come through, and only the reading is another.
    assert out_of_step({0: first, 1: rank_graph([recv(3, mx.int32) * 2], source=0)}) == ""
    longer = rank_graph([recv(4) * 2], source=0)
    assert "receives float32 [4]" in out_of_step({0: first, 1: longer})


def test_a_message_that_nobody_takes() -> None:
    line = said(rank_graph([send(mx.exp(X))], to=1), rank_graph([mx.exp(X)]))
    assert "rank 1 never receives float32 [3] that rank 0 sends it" in line


def test_a_collective_between_a_send_and_its_receive() -> None:
    """Rank 1 sums before it sends, and rank 0 waits for the message before it sums."""
    first = rank_graph([all_sum(recv() + X)], source=1)
    last = rank_graph([send(all_sum(X))], to=0)
    line = said(first, last)
    assert "rank 0 would wait for ever" in line and "before its own all_sum" in line


def test_messages_of_ranks_that_were_not_asked_are_taken_to_come() -> None:
    one = rank_graph([recv() * 2], source=7)
    assert "agree" in said(one, one)


def test_sums_that_are_returned_in_the_opposite_order() -> None:
    """They look alike, so nobody waits for ever, and each rank sums up something else."""
    one = rank_graph([all_sum(mx.sin(X)), all_sum(mx.cos(X))])
    other = rank_graph([all_sum(mx.cos(X)), all_sum(mx.sin(X))])
    line = said(one, other)
    assert "is collective 2 of rank 1" in line
    assert line.endswith("have them evaluated in the same order on all ranks")
    assert "agree" in said(one, one) and "do not" not in said(one, one)
    assert out_of_step({0: one, 1: other}) == ""


def test_sums_of_inputs_in_the_opposite_order_are_told_by_name() -> None:
    def renamed(graph: Graph) -> Graph:
        names = {"ArcSinh": "Sum AllReduce"}
        return graph.with_(primitives=tuple(names.get(each, each) for each in graph.primitives))

    one = renamed(capture(lambda x, y: [all_sum(x), all_sum(y)], X, Y))
    other = renamed(capture(lambda x, y: [all_sum(y), all_sum(x)], X, Y))
    first = collectives(one)[0]  # MLX begins with one of them, whichever it is
    name = one.names[int(one.inputs_of(first)[0])]
    expected = f"collective 1 of rank 0, all_sum of {name} float32 [3], is collective 2 of rank 1"
    assert expected in said(one, other)


def test_other_collectives_in_the_opposite_order_would_deadlock() -> None:
    one = rank_graph([all_sum(mx.sin(X)), all_max(mx.cos(X))])
    other = rank_graph([all_max(mx.cos(X)), all_sum(mx.sin(X))])
    assert "collective 1 differs: rank 0: all_" in said(one, other)
    assert "collective 1 differs" in out_of_step({0: one, 1: other})


def test_graphs_without_shapes_are_compared_by_their_collectives() -> None:
    one = rank_graph([all_sum(mx.sin(X)), send(mx.cos(X))], to=1)
    bare = one.with_(complete=False, arguments=np.zeros_like(one.arguments))
    assert "only names and edges are compared" in said(bare, bare)
    assert "only" not in said(one, one)
