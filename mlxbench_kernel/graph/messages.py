"""Sends and receives of ranks that evaluate their graphs together: do they find one another?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxbench_kernel.graph.model import Graph


@dataclass(frozen=True)
class MessageFault:
    """What is wrong with the messages of ranks.

    Attributes
    ----------
    text
        One line about it.
    hangs
        Whether a rank would wait for ever, or take the bytes of another message for its own;
        otherwise all come through, and not with what was meant.
    """

    text: str
    hangs: bool


def pair_of(graph: Graph, node: int) -> int | None:
    """The rank that a node sends to or receives from; None for other nodes."""
    if graph.collective(node) not in ("send", "recv"):
        return None
    return int(graph.arguments_text(node).partition("=")[2])


def message_fault(
    graphs: Mapping[int, Graph], sequences: Mapping[int, Sequence[int]]
) -> MessageFault | None:
    """Let ranks go through their collectives together, and say where one cannot go on.

    A send is taken not to wait for its receiver. That holds up to what the connection buffers
    (of the ring, the sockets' buffers), which is not known here: of two ranks that both send much
    before they receive, nothing is said. Of two that both receive first, it is.

    Parameters
    ----------
    graphs
        By rank. Messages from and to other ranks are taken to come and to be taken.
    sequences
        By rank, the nodes of its collectives, sends and receives, in the order in which it
        evaluates them. Those of all ranks are the same (`first_collective_difference`).

    Returns
    -------
    MessageFault or None
        None where every receive is sent the same shape and dtype, and every send is received.
    """
    waiting = {rank: deque(nodes) for rank, nodes in sequences.items()}
    sent: dict[tuple[int, int], deque[int]] = {}
    odd: MessageFault | None = None
    while any(waiting.values()):
        moved = False
        for rank, nodes in waiting.items():
            graph = graphs[rank]
            while nodes and (peer := pair_of(graph, nodes[0])) is not None:
                if graph.collective(nodes[0]) == "send":
                    sent.setdefault((rank, peer), deque()).append(nodes[0])
                elif peer in graphs:
                    messages = sent.get((peer, rank))
                    if not messages:
                        break
                    fault = _unlike(graphs, rank, nodes[0], peer, messages.popleft())
                    if fault is not None and fault.hangs:
                        return fault
                    odd = odd or fault
                nodes.popleft()
                moved = True
        if moved:
            continue
        # What is left of those who come through is a collective of all, the same on all ranks.
        for rank, nodes in waiting.items():
            if nodes and pair_of(graphs[rank], nodes[0]) is not None:
                return MessageFault(_stuck(graphs, waiting, rank), hangs=True)
        for nodes in waiting.values():
            if nodes:
                nodes.popleft()
    if odd is None:
        left = next((key for key, messages in sent.items() if messages and key[1] in graphs), None)
        if left is not None:
            rank, peer = left
            what = _message(graphs[rank], sent[left][0])
            odd = MessageFault(
                f"rank {peer} never receives {what} that rank {rank} sends it", False
            )
    return odd


def _unlike(
    graphs: Mapping[int, Graph], rank: int, received: int, peer: int, sent: int
) -> MessageFault | None:
    """Where what is received is not what was sent."""
    here, there = graphs[rank], graphs[peer]
    if not (here.complete and there.complete):
        return None
    taken, given = here.outputs_of(received)[0], there.outputs_of(sent)[0]
    if here.describe(taken) == there.describe(given):
        return None
    text = (
        f"rank {rank} receives {_message(here, received)} from rank {peer}, "
        f"which sends it {_message(there, sent)}"
    )
    return MessageFault(text, hangs=bool(here.nbytes[taken] != there.nbytes[given]))


def _stuck(graphs: Mapping[int, Graph], waiting: Mapping[int, Sequence[int]], rank: int) -> str:
    """Why a rank does not get what it waits for, when no rank can go on."""
    graph, node = graphs[rank], waiting[rank][0]
    peer = pair_of(graph, node)
    assert peer is not None
    there = graphs[peer]
    text = f"rank {rank} would wait for ever for what rank {peer} does not send it"
    coming = any(
        there.collective(each) == "send" and pair_of(there, each) == rank for each in waiting[peer]
    )
    if coming:
        first = waiting[peer][0]
        what, other = there.collective(first), pair_of(there, first)
        other_text = "" if other is None else f" from rank {other}"
        text += f" before its own {what}{other_text} (node {first}) is through"
    return f"{text} (recv of {_message(graph, node)}, node {node})"


def _message(graph: Graph, node: int) -> str:
    return graph.describe(graph.outputs_of(node)[0]) or "an array"
