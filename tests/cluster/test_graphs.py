"""Graphs of ranks: captured there, with the names that the variables have there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults import SETUP, in_background

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.graph import Graph, Phase
from mlxbench_kernel.remote import capture_on


@pytest.fixture(scope="module")
def ranks() -> Iterator[Cluster]:
    cluster = Cluster.up(2, seed=7)
    assert not cluster.execute(SETUP).errors
    yield cluster
    cluster.down()


def collectives(graph: Graph) -> list[tuple[str, str, str]]:
    found = [node for node in range(graph.nodes) if graph.collective(node)]
    return [
        (graph.collective(n), graph.arguments_text(n), graph.describe(graph.outputs_of(n)[0]))
        for n in found
    ]


def test_a_step_with_its_collectives_on_all_ranks(ranks: Cluster) -> None:
    graphs = capture_on(ranks, "step(x, y)", [0, 1])
    assert list(graphs) == [0, 1]
    for graph in graphs.values():
        # nn.average_gradients sends all gradients at once.
        assert collectives(graph) == [("all_sum", "ranks=2", "float32 [161]")]
        assert {"x", "y", "model.one.weight"} <= {graph.name(node) for node in range(graph.nodes)}
        assert set(graph.phase.tolist()) == set(map(int, Phase))
    # Nothing has happened on the ranks: the step is taken now, for the first time.
    assert not ranks.execute("mx.eval(step(x, y), state)\ntaken = optimizer.step.item()").errors
    assert ranks.pull("taken") == {0: 1, 1: 1}


def test_arrays_that_wait_on_one_rank(ranks: Cluster) -> None:
    ranks.execute("total = mx.distributed.all_sum(mx.ones(3) * rank, group=g) + treasure.sum()")
    (graph,) = capture_on(ranks, "total", [1]).values()
    assert ("all_sum", "ranks=2", "float32 [3]") in collectives(graph)
    assert "treasure" in graph.names.values()
    assert not ranks.execute("assert total.tolist() == [11.0 + rank * 5] * 3").errors


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("missing", "ranks 0, 1: NameError: name 'missing' is not defined"),
        ("treasure", "ranks 0, 1: treasure is evaluated already"),
        ("step(x", "ranks 0, 1: %mlx_graph: 'step"),
        ("broken(x)", r"ranks 0, 1: ZeroDivisionError: .* by zero \(line 2 in broken\)"),
        ("reading(x)", "ranks 0, 1: line 2 of the cell .reading. reads a value"),
        ("only", "rank 0: NameError.*; on rank 1 it can be captured"),
    ],
)
def test_what_cannot_be_captured_is_said_in_one_line(
    ranks: Cluster, expression: str, said: str
) -> None:
    ranks.execute("def broken(x):\n    return x / (1 // 0)")
    ranks.execute("def reading(x):\n    return x * x.sum().item() if x.sum() > 0 else x")
    ranks.execute("only = mx.ones(3) + 1", ranks=[1])
    with pytest.raises(UsageError, match="^" + said) as raised:
        capture_on(ranks, expression, [0, 1])
    assert "\n" not in str(raised.value)


def test_a_busy_rank_is_named(ranks: Cluster) -> None:
    cell = in_background(ranks, "import time\nif rank:\n    time.sleep(1000)")
    while not ranks.doing([1])[1].startswith("busy"):
        pass
    with pytest.raises(UsageError, match=r"rank 1 is busy .*: capture when it is idle"):
        capture_on(ranks, "step(x, y)", [0, 1])
    ranks.interrupt()
    cell.result(timeout=10)


def test_a_rank_that_is_gone_is_said_with_what_brings_it_back() -> None:
    cluster = Cluster.up(2, seed=7)
    dies = "import os, signal\nif rank:\n    os.kill(os.getpid(), signal.SIGKILL)"
    assert 1 in cluster.execute(dies).errors
    with pytest.raises(ClusterError, match=r"^rank 1 .* is gone .*: %mlx_dist heal brings it back"):
        capture_on(cluster, "mx.ones(3) * 2", [0, 1])
    assert list(capture_on(cluster, "mx.ones(3) * 2", [0])) == [0]
    cluster.down()
