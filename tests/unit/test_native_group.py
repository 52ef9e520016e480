"""The lasting group between two processes: right values, its log, and how it is broken off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from two_processes import Pair, RankError, two_processes

from mlxbench_kernel.rank.collectives import Collectives

REASON = "rank 1 raised ValueError"


@pytest.fixture(scope="module")
def processes() -> Iterator[Pair]:
    with two_processes() as pair:
        yield pair


@pytest.fixture
def pair(processes: Pair) -> Iterator[Pair]:
    yield processes
    said = processes.run("value = GROUP.intact")
    if said != [True, True]:
        processes.renew()


# -- what it gives -------------------------------------------------------------

DTYPES = (
    "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 bfloat16 complex64"
)


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_operations_give_the_right_values(pair: Pair, dtype: str) -> None:
    code = f"""
mine = mx.array([[1, 0, 3], [0, 1, 1]]).astype(mx.{dtype}) * (1 - rank)
other = mx.array([[1, 1, 1], [0, 0, 1]]).astype(mx.{dtype}) * rank
x = (mine + other).astype(mx.{dtype})
both = [mx.array([[1, 0, 3], [0, 1, 1]]).astype(mx.{dtype}),
        mx.array([[1, 1, 1], [0, 0, 1]]).astype(mx.{dtype})]
expected = {{
    "all_sum": both[0] + both[1],
    "all_max": mx.maximum(*both),
    "all_min": mx.minimum(*both),
    "all_gather": mx.concatenate(both),
}}
value = []
for name, right in expected.items():
    if "{dtype}" == "complex64" and name in ("all_max", "all_min"):
        continue
    got = getattr(mx.distributed, name)(x, group=group)
    if got.dtype != mx.{dtype} or not mx.array_equal(got, right.astype(mx.{dtype})).item():
        value.append((name, str(got), str(right)))
"""
    assert pair.run(code) == [[], []]


def test_send_and_receive(pair: Pair) -> None:
    pair.run("""
x = mx.arange(6).reshape(2, 3).astype(mx.bfloat16)
if rank == 0:
    mx.eval(mx.distributed.send(x, 1, group=group))
    got = mx.distributed.recv_like(x, 1, group=group)
else:
    got = mx.distributed.recv((2, 3), mx.bfloat16, 0, group=group)
    mx.eval(got)
    mx.eval(mx.distributed.send(got * 2, 0, group=group))
assert mx.array_equal(got, x * (2 - rank)).item()
""")


def test_inputs_that_are_not_contiguous_or_used_again(pair: Pair) -> None:
    pair.run("""
x = mx.arange(12).reshape(3, 4).astype(mx.float32) + rank
mx.eval(x)
kept = x + 0
for view in (x.T, x[:, ::2], x[1:], mx.broadcast_to(x[0], (5, 4)), x[0, 0], x[:0]):
    right = 2 * view + (1 - 2 * rank)
    assert mx.array_equal(mx.distributed.all_sum(view, group=group), right).item(), view
    gathered = mx.distributed.all_gather(view if view.ndim else view[None], group=group)
    assert gathered.shape[0] == 2 * (view.shape[0] if view.ndim else 1)
    mine = gathered[: len(gathered) // 2] if rank == 0 else gathered[len(gathered) // 2 :]
    assert mx.array_equal(mine.reshape(view.shape), view).item()
assert mx.array_equal(x, kept).item()  # an input that is used again is left as it is
""")


def test_inside_compile_and_gradients(pair: Pair) -> None:
    pair.run("""
@mx.compile
def averaged(x):
    return mx.distributed.all_sum(x * 2, group=group) / 2

for n in (1, 2, 3):
    assert averaged(mx.ones(n) * (rank + 1)).tolist() == [3.0] * n

def loss(w):
    return mx.sum(mx.distributed.all_sum(w * (rank + 1), group=group) ** 2)

value_, grad = mx.compile(mx.value_and_grad(loss))(mx.array([1.0, 2.0]))
# MLX: the gradient of all_sum is that of its output (mlx/distributed/primitives.cpp).
assert value_.item() == 45 and grad.tolist() == [6.0 * (rank + 1), 12.0 * (rank + 1)]
model = nn.Linear(4, 4)
averages = nn.average_gradients(mx.value_and_grad(lambda p: p["weight"].sum())(
    {"weight": mx.ones((4, 4)) * rank})[1], group=group)
assert averages["weight"].tolist() == [[1.0] * 4] * 4
""")


def test_init_gives_the_lasting_group(pair: Pair) -> None:
    assert (
        pair.run(
            "g = mx.distributed.init()\n"
            "value = [module.is_lasting(g), g.size(), g.rank() == rank, "
            "mx.distributed.all_sum(mx.array(1.0)).item()]"
        )
        == [[True, 2, True, 2.0]] * 2
    )


# -- its memory ----------------------------------------------------------------


def test_memory_is_used_again_as_in_a_group_of_mlx(pair: Pair) -> None:
    peaks = pair.run(f"""
raw, sockets = connect({free()})
for each in sockets:
    os.close(each)
def peak(all_sum, group):
    x = mx.zeros((1 << 18,))
    mx.eval(x)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    y = x + 1
    for _ in range(50):
        y = all_sum(y, group=group) + 1
    mx.eval(y)
    return mx.get_peak_memory() - before
theirs = peak(GROUP.original("all_sum"), raw)
value = [peak(mx.distributed.all_sum, group), theirs]
del raw
""")
    for ours, theirs in peaks:
        assert ours <= theirs


def test_memory_does_not_grow(pair: Pair) -> None:
    grown = pair.run("""
def many():
    for _ in range(1000):
        mx.eval(mx.distributed.all_sum(mx.ones(256), group=group))
many()
before = mx.get_active_memory()
many()
value = mx.get_active_memory() - before
""")
    assert grown == [0, 0]


def free() -> list[str]:
    from two_processes import free_addresses

    return free_addresses()


# -- its log -------------------------------------------------------------------


def test_the_log_says_what_when_and_where(pair: Pair) -> None:
    logs = pair.run("""
since = len(GROUP.log()) and GROUP.log()[-1]["number"] + 1
before = GROUP.progress()
mx.eval(mx.distributed.all_sum(mx.ones((2, 3), mx.bfloat16), group=group))
if rank == 0:
    mx.eval(mx.distributed.send(mx.ones(4), 1, group=group))
else:
    mx.eval(mx.distributed.recv((4,), mx.float32, 0, group=group))
lazy = mx.distributed.all_gather(mx.ones(5, mx.int8))
after = GROUP.progress()
lazy.tolist()
value = [GROUP.log(since), after["whole"] - before["whole"], GROUP.progress()["running"]]
""")
    for rank, (log, count, running) in enumerate(logs):
        assert count == 1, "what is lazy was not asked for"
        assert running is None
        whole, pairwise, lazy = log
        assert (whole["operation"], whole["shape"], whole["dtype"]) == (
            "all_sum",
            [2, 3],
            "bfloat16",
        )
        assert pairwise["operation"] == ("recv" if rank else "send")
        assert (pairwise["peer"], pairwise["shape"], pairwise["turn"]) == (
            1 - rank,
            [4],
            pairwise["turn"],
        )
        assert (lazy["operation"], lazy["dtype"]) == ("all_gather", "int8")
        assert [each["line"] for each in log] == [
            "line 4 of the cell",
            f"line {8 if rank else 6} of the cell",
            "line 9 of the cell",
        ]
        for each in log:
            assert 0 < each["asked"] <= each["begun"] <= each["done"]
        assert lazy["turn"] == whole["turn"] + 1 and whole["peer"] == lazy["peer"] == -1


def test_the_log_is_bounded(pair: Pair) -> None:
    code = (
        "x = mx.array(0.0)\nfor _ in range(4200):\n    x = mx.distributed.all_sum(x, group=group)\n"
        "    if _ % 100 == 0:\n        mx.eval(x)\n"
        "mx.eval(x)\nlog = GROUP.log()\n"
        "span = log[-1]['number'] - log[0]['number']\n"
        "value = [len(log), span, len(GROUP.log(log[-3]['number']))]"
    )
    assert pair.run(code) == [[4096, 4095, 3]] * 2


def test_chains_are_equal_when_the_collectives_are(pair: Pair) -> None:
    same = pair.run(
        "mx.eval(mx.distributed.all_sum(mx.ones((2, 3)), group=group))\n"
        "value = [GROUP.progress()['chain'], GROUP.progress()['whole']]"
    )
    assert same[0] == same[1]
    # Of the same number of bytes: MLX itself does not notice.
    differ = pair.run(
        "mx.eval(mx.distributed.all_sum(mx.ones((2, 3) if rank else (3, 2)), group=group))\n"
        "now = GROUP.progress()\n"
        "value = [now['chain'], GROUP.chain(now['whole'] - 1), GROUP.chain(now['whole'] + 1)]"
    )
    assert differ[0][0] != differ[1][0]
    assert [each[1:] for each in differ] == [[same[0][0], None]] * 2
    pair.renew()
    assert pair.run("value = [GROUP.progress()['whole'], GROUP.chain(0)]") == [[0, 0]] * 2


# -- how it is broken off ------------------------------------------------------


def test_a_limit_refuses_at_the_call_and_leaves_arrays_as_they_were(pair: Pair) -> None:
    pair.run("lazy = mx.distributed.all_sum(mx.ones(3) * (rank + 1), group=group)")
    said = pair.run(f"""
GROUP.limit(GROUP.progress()["whole"], [], {REASON!r})
try:
    mx.eval(lazy)
except RuntimeError as error:
    value = [str(error), GROUP.progress()["refused"], GROUP.progress()["broken"]]
""")
    assert said == [[REASON, True, ""]] * 2
    pair.renew()
    assert pair.run("value = lazy.tolist()") == [[3.0] * 3] * 2


def test_limits_that_have_refused_nothing_are_lifted(pair: Pair) -> None:
    pair.run("GROUP.limit(GROUP.progress()['whole'] + 1, [], 'x')")
    add = "value = mx.distributed.all_sum(mx.ones(1)).item()"
    assert pair.run(add) == [2.0, 2.0]
    assert pair.run("GROUP.lift()\nvalue = GROUP.progress()['limited']") == [False, False]
    assert pair.run(add) == [2.0, 2.0]
    pair.run("GROUP.limit(GROUP.progress()['whole'], [], 'x')")
    with pytest.raises(RankError, match="RuntimeError: x"):
        pair.ranks[0].run(add)
    assert pair.ranks[0].run("GROUP.lift()\nvalue = GROUP.progress()['limited']") is True


def test_sends_and_receives_have_limits_of_their_own(pair: Pair) -> None:
    pair.renew()  # of each peer nothing is counted yet
    pair.run("GROUP.limit(GROUP.progress()['whole'] + 5, [(1 - rank, 1, 1)], 'no more')")
    transfer = (
        "if rank == 0:\n    mx.eval(mx.distributed.send(mx.ones(4), 1))\n"
        "else:\n    mx.eval(mx.distributed.recv((4,), mx.float32, 0))"
    )
    pair.run(transfer)
    with pytest.raises(RankError, match="no more"):
        pair.run(transfer)


@pytest.mark.parametrize("way", ["release", "limit"])
def test_a_blocked_collective_is_freed(pair: Pair, way: str) -> None:
    first, _ = pair.ranks
    pair.run("pending = mx.distributed.all_sum(mx.array([rank + 1.0]), group=group)")
    blocked = first.ask("mx.eval(mx.distributed.all_sum(mx.ones(1 << 16), group=group))")
    first.wait_until_blocked()
    call = f"GROUP.release({REASON!r})"
    if way == "limit":
        call = f"GROUP.limit(GROUP.progress()['whole'] - 1, [], {REASON!r})"
    first.run(call, side=True)
    with pytest.raises(RankError, match=REASON):
        first.answer(blocked)
    with pytest.raises(RankError, match=REASON):  # nothing may begin in what is broken
        first.run("mx.eval(mx.distributed.all_sum(mx.ones(2), group=group))")
    said = first.run("value = GROUP.progress()")
    assert said["broken"] == REASON and said["running"] is None
    entry = first.run("value = [e for e in GROUP.log() if e['shape'] == (1 << 16,)][-1]")
    assert entry["begun"] > 0 and entry["done"] == 0
    pair.renew()
    assert pair.run("value = pending.item()") == [3.0, 3.0]


def test_a_limit_beyond_what_runs_lets_it_end(pair: Pair) -> None:
    first, second = pair.ranks
    both = "value = mx.distributed.all_sum(mx.ones(2), group=group).tolist()"
    blocked = first.ask(both)
    first.wait_until_blocked()
    first.run("GROUP.limit(GROUP.progress()['whole'], [], 'later')", side=True)
    assert second.run(both) == first.answer(blocked) == [2.0, 2.0]
    with pytest.raises(RankError, match="later"):
        first.run(both)


def test_what_was_made_before_goes_on_in_new_connections(pair: Pair) -> None:
    pair.run("""
old = mx.distributed.init()
add = mx.compile(lambda x: mx.distributed.all_sum(x, group=old))
layer = nn.layers.distributed.AllToShardedLinear(4, 4, group=old)
mx.eval(layer.parameters())
assert add(mx.ones(2)).tolist() == [2.0, 2.0]
pending = mx.distributed.all_gather(mx.array([float(rank)]), group=old)
links = GROUP.progress()["link"]
""")
    pair.renew()
    assert (
        pair.run("""
value = [
    add(mx.ones(2)).tolist(), layer(mx.ones((1, 4))).shape[-1], pending.tolist(),
    GROUP.progress()["link"] - links, mx.distributed.init() is group, old.size(),
]
""")
        == [[[2.0, 2.0], 2, [0.0, 1.0], 1, True, 2]] * 2
    )


def test_a_dead_peer_is_an_error_and_what_is_left_lives() -> None:
    with two_processes() as pair:
        first, second = pair.ranks
        pair.run("x = mx.ones(3)\nmx.eval(mx.distributed.all_sum(x, group=group))")
        blocked = first.ask("mx.eval(mx.distributed.all_sum(x, group=group))")
        first.wait_until_blocked()
        second.kill()
        with pytest.raises(RankError, match="connection to a peer was lost"):
            first.answer(blocked)
        assert first.run("value = x.tolist()") == [1.0] * 3
        said = first.run("value = GROUP.progress()")
        assert "connection to a peer was lost" in said["broken"] and said["running"] is None


def test_only_lets_sends_among_some_ranks_through(pair: Pair) -> None:
    first, _ = pair.ranks
    lazy = "lazy = mx.distributed.all_sum(mx.ones(2), group=group)"
    pair.run(lazy)
    first.run("GROUP.only([0])")
    for code in ("mx.eval(lazy)", "mx.eval(mx.distributed.send(mx.ones(2), 1, group=group))"):
        with pytest.raises(RankError, match=r"a cell for only some of the ranks .*(all_sum|send)"):
            first.run(code)
    first.run("GROUP.only([0, 1])")
    with pytest.raises(RankError, match="all_sum in line 1"):
        first.run("mx.eval(lazy)")
    transfer = "mx.eval({})\nvalue = GROUP.intact"
    sent = first.ask(transfer.format("mx.distributed.send(mx.ones(2), 1, group=group)"))
    assert pair.ranks[1].run(
        transfer.format("mx.distributed.recv((2,), mx.float32, 0, group=group)")
    )
    assert first.answer(sent), "nothing was broken off"
    first.run("GROUP.only([])")
    assert pair.run("value = lazy.tolist()") == [[2.0, 2.0]] * 2


def test_no_time_is_told_of_collectives_whose_ends_are_not_known() -> None:
    """As of those that a GPU executes."""

    def told(known: bool, since: int = 4) -> float:
        one = Collectives()
        log = SimpleNamespace(spent=lambda _: (4, 2, 2.0, known))  # two, from number 4 on
        one.group, one._native = object(), cast(Any, log)
        number, seconds = one.spent(since)
        assert number == 6
        return seconds

    assert told(True) == 2.0
    assert told(True, since=2) == 4.0  # two are forgotten
    assert math.isnan(told(False))


def test_of_a_collective_that_waits_no_time_is_told_yet(pair: Pair) -> None:
    first, second = pair.ranks
    pair.run("before = GROUP.spent(0)[0]")
    waiting = """
lazy = mx.distributed.all_sum(mx.ones(4), group=group)
mx.async_eval(lazy)
while not GROUP.log(before) or not GROUP.log(before)[0]["begun"]:
    pass
value = [GROUP.spent(before)[0] - before, GROUP.spent(before)[1], GROUP.log(before)[0]["done"]]
"""
    assert first.run(waiting) == [1, 0.0, 0.0]
    second.run("mx.eval(mx.distributed.all_sum(mx.ones(4), group=group))")
    assert first.run("mx.eval(lazy)\nvalue = GROUP.spent(before)[1]") > 0


def test_the_time_in_collectives_is_that_of_the_log(pair: Pair) -> None:
    look = """
rows = GROUP.log(before)
known = sum(each["done"] - each["begun"] for each in rows if each["done"] > 0)
value = [*GROUP.spent(before), len(rows), known]
"""
    sums = "mx.eval([mx.distributed.all_sum(mx.ones(4)) for _ in range({})])\n"
    for number, seconds, rows, known in pair.run(
        "before = GROUP.spent(0)[0]\n" + sums.format(30) + look
    ):
        assert rows == 30 <= number and 0 < seconds == pytest.approx(known)
    # Of those that are forgotten, each took as long as the others.
    for number, seconds, rows, known in pair.run("before = 0\n" + 43 * sums.format(100) + look):
        assert rows == 4096 < number and seconds == pytest.approx(known * number / rows)
