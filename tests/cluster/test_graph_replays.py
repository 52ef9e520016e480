"""Copies of graphs evaluated on ranks, node by node and together: times, and NaN's origin."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from faults import SETUP, Told

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError, UsageError
from mlxbench_kernel.graph.collective_order import collectives
from mlxbench_kernel.remote import capture_on, nonfinite_on, profile_on

# Rank 1 takes the logarithm of what is negative; all of it goes through two collectives.
BAD = """
class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 4)
    def __call__(self, x):
        return mx.log(self.gate(x))

class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [Part()]
    def __call__(self, x):
        first = mx.distributed.all_sum(x, group=g)
        return mx.distributed.all_sum(self.layers[0](x + 0 * first), group=g).sum()

bad = Bad()
bad.layers[0].gate.weight = mx.eye(4)
bad.layers[0].gate.bias = mx.zeros(4)
fed = mx.ones((2, 4)) * (1 - 2 * rank)
mx.eval(bad.parameters(), fed)
"""


@pytest.fixture(scope="module")
def ranks() -> Iterator[Cluster]:
    cluster = Cluster.up(2, seed=7)
    assert not cluster.execute(SETUP).errors
    assert not cluster.execute(BAD).errors
    yield cluster
    cluster.down()


def asked(ranks: Cluster) -> dict[int, int]:
    """How many collectives of the whole group each rank was asked for."""
    return {rank: group["whole"] for rank, group in ranks.client.groups([0, 1]).items()}


def assert_usable(ranks: Cluster) -> None:
    """The group works, variables are there, and nothing is kept."""
    assert not ranks.execute(
        "assert mx.distributed.all_sum(mx.array(rank + 1), group=g).item() == 3\n"
        "assert treasure.tolist() == [rank + i for i in range(5)]\n"
        "from mlxbench_kernel.remote import kept, results\n"
        "assert kept.KEPT.captured is None\n"
        "assert results.take(kept.__name__, 'on_kept') is None"
    ).errors


def test_a_step_is_profiled_on_all_ranks_with_its_collectives(ranks: Cluster) -> None:
    before = asked(ranks)
    profiles = profile_on(ranks, "step(x, y)", [0, 1], repeat=3, warm_up=1)
    assert list(profiles) == [0, 1]
    for profile in profiles.values():
        graph = profile.graph
        inputs = np.array([graph.is_input(node) for node in range(graph.nodes)])
        assert profile.seconds.shape == (graph.nodes,)
        assert np.all((profile.seconds > 0) == ~inputs)
        assert profile.whole > 0 and profile.left_out == () and profile.repeat == 3
        assert profile.total == pytest.approx(sum(profile.by_primitive().values()))
        assert "Sum AllReduce" in profile.by_primitive()
        assert 0 < profile.by_scope()["model.one"] < profile.total
        assert "waiting for ranks that come later" in str(profile)
    # One all_sum, in each of four rounds node by node and four of the whole.
    assert {rank: count - before[rank] for rank, count in asked(ranks).items()} == {0: 8, 1: 8}
    assert not ranks.execute("mx.eval(step(x, y), state)\ntaken = optimizer.step.item()").errors
    assert ranks.pull("taken") == {0: 1, 1: 1}
    assert_usable(ranks)


def test_one_rank_alone_measures_what_needs_no_other(ranks: Cluster) -> None:
    (alone,) = profile_on(ranks, "loss_of(x, y)", [1], repeat=1, warm_up=0).values()
    assert alone.total > 0 and "waiting" not in str(alone)
    before = asked(ranks)
    (left_out,) = profile_on(ranks, "step(x, y)", [1], repeat=1, collectives=False).values()
    assert len(left_out.left_out) == 1 and "Left out: 1 collectives (all_sum)" in str(left_out)
    assert asked(ranks) == before
    assert_usable(ranks)


@pytest.mark.parametrize(
    ("expression", "chosen", "said"),
    [
        ("step(x, y)", [1], "rank 1, of which all_sum would wait for rank 0 for ever"),
        ("uneven", [0, 1], r"collective 1 differs: rank 0: all_sum .*; rank 1: none"),
        (
            "crossed",
            [0, 1],
            r"node by node, collective 1 differs: rank 0: all_sum .*; rank 1: all_",
        ),
        ("unsent", [0, 1], "rank 1 would wait for ever for what rank 0 does not send"),
        ("treasure", [0, 1], "ranks 0, 1: treasure is evaluated already"),
    ],
)
def test_what_would_wait_for_ever_is_refused_in_one_line(
    ranks: Cluster, expression: str, chosen: list[int], said: str
) -> None:
    ranks.execute(
        "uneven = mx.ones(3) + 1 if rank else mx.distributed.all_sum(mx.ones(3), group=g)\n"
        "unsent = mx.distributed.recv((3,), mx.float32, 0, group=g) if rank else mx.ones(3) + 1\n"
        "one = mx.distributed.all_sum(mx.ones(3), group=g)\n"
        "two = mx.distributed.all_max(mx.ones(3), group=g)\n"
        "crossed = [two, mx.exp(mx.exp(one))] if rank else [mx.exp(one), two]"
    )
    before = asked(ranks)
    for on in (profile_on, nonfinite_on):
        with pytest.raises(UsageError, match=said) as raised:
            on(ranks, expression, chosen)
        assert "\n" not in str(raised.value)
    assert asked(ranks) == before
    assert_usable(ranks)


def test_collectives_are_evaluated_in_the_order_that_is_compared(ranks: Cluster) -> None:
    """Of outputs as they are given, side by side, one in the other, and more than MLX looks at."""
    ranks.execute(
        "calls = [mx.distributed.all_sum, mx.distributed.all_max, mx.distributed.all_min]\n"
        "def three():\n"
        "    return [call(mx.ones(3) * i, group=g) for i, call in enumerate(calls)]\n"
        "one, two, last = three()\n"
        "apart = [mx.exp(mx.exp(one)), two, mx.sin(last)]\n"
        "one, two, last = three()\n"
        "crossing = [two * 2, mx.distributed.all_min(mx.exp(one * two), group=g), last]\n"
        "many = [calls[i * i % 3](mx.ones(3) * i, group=g) for i in range(30)]"
    )
    as_numbered = []
    for what in ("apart", "crossing", "many"):
        graph = capture_on(ranks, what, [0])[0]
        expected, numbered = (
            [graph.collective(node) for node in collectives(graph, by_number)]
            for by_number in (False, True)
        )
        as_numbered.append(expected == numbered)
        assert not ranks.execute(f"mx.eval({what})").errors
        log = ranks.collectives([0])[0][-len(expected) :]
        assert [entry["operation"] for entry in log] == expected, what
    assert not all(as_numbered)  # it is another order than that of the numbers


def test_messages_between_two_ranks_are_profiled(ranks: Cluster) -> None:
    ranks.execute(
        "if rank == 0:\n    message = mx.distributed.send(mx.log(fed - 1), 1, group=g)\n"
        "else:\n    message = mx.distributed.recv((2, 4), mx.float32, 0, group=g) * 2"
    )
    profiles = profile_on(ranks, "message", [0, 1], repeat=2)
    assert profiles[0].by_primitive()["Send"] > 0 and profiles[1].by_primitive()["Recv"] > 0
    found = nonfinite_on(ranks, "message", [0, 1])
    assert [each.primitive for each in found.found.values() if each] == ["Log", "recv"]
    assert list(found.origins) == [0] and found.came_from == {1: (0,)}


def test_ctrl_c_in_the_middle_leaves_ranks_usable(ranks: Cluster) -> None:
    told = Told()

    def press() -> None:
        while min(asked(ranks).values()) < before + 20:
            pass
        psutil.Process().send_signal(signal.SIGINT)

    before = max(asked(ranks).values())
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        profile_on(ranks, "step(x, y)", [0, 1], repeat=1_000_000, tell=told)
    thread.join()
    assert ranks.doing([0, 1]) == {0: "idle", 1: "idle"}
    assert_usable(ranks)
    assert profile_on(ranks, "step(x, y)", [0, 1], repeat=1)[1].total > 0


def test_ctrl_c_while_it_is_captured_leaves_ranks_usable(ranks: Cluster) -> None:
    ranks.execute("def endless(x):\n    while True:\n        x = x + 1")

    def press() -> None:
        while not all(does.startswith("busy") for does in ranks.doing([0, 1]).values()):
            pass
        psutil.Process().send_signal(signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        profile_on(ranks, "endless(x)", [0, 1])
    thread.join()
    assert ranks.doing([0, 1]) == {0: "idle", 1: "idle"}
    assert_usable(ranks)


def test_nan_that_one_rank_makes_is_followed_to_it(ranks: Cluster) -> None:
    found = nonfinite_on(ranks, "bad(fed)", [0, 1])
    given, made = found.found[0], found.found[1]
    assert given is not None and given.primitive == "all_sum" and given.inputs[0].nans == 0
    assert made is not None and (made.primitive, made.path) == ("Log", "bad.layers.0")
    assert (made.output.nans, made.output.size, made.inputs[0].highest) == (8, 8, -1)
    assert found.origins == {1: made} and found.came_from == {0: (1,)}
    lines = str(found).splitlines()
    assert [line.partition(": ")[0] for line in lines[:2]] == ["rank 0", "rank 1"]
    assert lines[0].endswith("it came from rank 1")
    assert lines[2:] == ["first on rank 1, before collective 2 (all_sum)"]
    ranks.execute("fine = bad(mx.ones((2, 4)))")
    assert str(nonfinite_on(ranks, "fine", [0, 1])).count("everything is finite") == 2
    assert_usable(ranks)


def test_nan_that_only_others_see_is_followed_too(ranks: Cluster) -> None:
    ranks.execute(
        "own = mx.distributed.all_gather(mx.log(fed), group=g)\n"
        "picked = own[2 - 2 * rank : 4 - 2 * rank] + 1"  # that of the other rank
    )
    found = nonfinite_on(ranks, "picked", [0, 1])
    here, there = found.found[0], found.found[1]
    assert here is not None and here.primitive == "all_gather" and here.reaches
    assert there is not None and there.primitive == "Log" and not there.reaches
    assert list(found.origins) == [1] and found.came_from == {0: (1,)}
    assert str(found).endswith("\nfirst on rank 1, before collective 1 (all_gather)")


def test_a_sum_that_overflows_is_where_it_begins(ranks: Cluster) -> None:
    ranks.execute("much = mx.distributed.all_sum(mx.full((2,), 6e4, mx.float16) * 1, group=g)")
    found = nonfinite_on(ranks, "much", [0, 1])
    assert [each.primitive for each in found.origins.values()] == ["all_sum", "all_sum"]
    assert found.came_from == {}
    assert str(found).endswith("\nfirst on ranks 0, 1, in collective 1 (all_sum)")


def test_a_rank_that_cannot_evaluate_frees_the_others(ranks: Cluster) -> None:
    """Refused on rank 1 alone, after rank 0 has begun to wait: the group is mended."""
    broken = "from mlxbench_kernel.remote import kept\nwhole, kept.profile = kept.profile, {}"
    ranks.execute(broken, ranks=[1])
    told = Told()
    with pytest.raises(ClusterError, match=r"^rank 1: TypeError: 'dict' object is not callable$"):
        profile_on(ranks, "step(x, y)", [0, 1], tell=told)
    ranks.execute("kept.profile = whole", ranks=[1])
    assert "the group was made anew" in str(told)
    assert_usable(ranks)


def test_first_nonfinite_in_a_cell_goes_through_the_group_in_step(ranks: Cluster) -> None:
    before = asked(ranks)
    cell = (
        "from mlxbench_kernel import first_nonfinite\n"
        "loss = bad(fed)\n"
        "found = first_nonfinite(loss)\n"
        "said = (found.primitive, found.path, found.output.nans)\n"
        "own = first_nonfinite(loss, collectives=False)\n"
        "own = own and own.primitive"
    )
    assert not ranks.execute(cell).errors
    assert {rank: count - before[rank] for rank, count in asked(ranks).items()} == {0: 2, 1: 2}
    said = ranks.pull("said")
    assert said[0][0] == "all_sum" and said[1][0] == "Log" and "layers.0" in said[1][1]
    assert ranks.pull("own") == {0: None, 1: "Log"}
    log = ranks.collectives([0])[0]
    assert [entry["operation"] for entry in log[-2:]] == ["all_sum"] * 2
    # Still lazy: evaluating it executes its two collectives once more.
    assert not ranks.execute("assert mx.isnan(loss).item()").errors
    assert {rank: count - before[rank] for rank, count in asked(ranks).items()} == {0: 4, 1: 4}


def test_what_is_evaluated_for_the_user_is_no_cell_of_the_users(ranks: Cluster) -> None:
    ranks.execute("kept_cell = 1")
    profile_on(ranks, "step(x, y)", [0, 1], repeat=1)
    assert {cell.code for cell in ranks.last_cell().values()} == {"kept_cell = 1"}


def test_a_rank_that_dies_in_the_middle_is_named() -> None:
    cluster = Cluster.up(2, seed=7)
    assert not cluster.execute(SETUP).errors
    pid = cluster.info.ranks[1].pid

    def kill() -> None:
        while min(asked(cluster).values()) < 20:
            pass
        psutil.Process(pid).kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ClusterError, match=r"^rank 1 "):
        profile_on(cluster, "step(x, y)", [0, 1], repeat=1_000_000)
    thread.join()
    assert cluster.doing([0]) == {0: "idle"}
    assert cluster.pull("treasure", ranks=[0])[0].tolist() == [0, 1, 2, 3, 4]
    cluster.down()


def test_a_rank_that_dies_stops_the_others_which_wait_for_nothing() -> None:
    """Without collectives rank 0 would go on for hours with what nobody will see."""
    cluster = Cluster.up(2, seed=7)
    assert not cluster.execute(SETUP).errors
    dying = (
        "import os, signal\n"
        "from mlxbench_kernel.remote import kept\n"
        "kept.profile = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert not cluster.execute(dying, ranks=[1]).errors
    with pytest.raises(ClusterError, match=r"^rank 1 .* is gone .*: %mlx_dist heal brings it back"):
        profile_on(cluster, "step(x, y)", [0, 1], repeat=100_000_000, collectives=False)
    assert cluster.doing([0]) == {0: "idle"}
    cluster.heal()
    assert profile_on(cluster, "x * 2", [0], repeat=1, collectives=False)[0].total > 0
    cluster.down()
