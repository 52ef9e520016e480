"""Nothing that a cell does loses state: faults on real ranks, and what is left afterwards."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from faults import BLOCKED, SETUP, Told, in_background, interrupted, wait_until_waiting
from running import Recorded, processes

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.healing import Healing
from mlxbench_kernel.errors import CellTimeout, CollectiveMismatch, UsageError

CHECK = """
total = mx.distributed.all_sum(mx.ones(3) * (rank + 1), group=g).tolist()
shape = sharded(mx.ones((1, 8))).shape
added = add(mx.ones(2)).tolist()
kept = (treasure.tolist(), total, added)
"""


@pytest.fixture(scope="module", params=[2, 4])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    before = processes()
    cluster = Cluster.up(request.param, seed=7)
    yield cluster
    cluster.down()
    assert processes() <= before


@pytest.fixture
def ranks(cluster: Cluster) -> Cluster:
    assert not cluster.execute(SETUP, timeout=60).errors
    return cluster


@pytest.fixture
def two(ranks: Cluster) -> Cluster:
    if ranks.size != 2:
        pytest.skip("says the same with two ranks")
    return ranks


def assert_usable(ranks: Cluster) -> None:
    """Variables are there; group, sharded layer and compiled function work."""
    result = ranks.execute(CHECK, timeout=30)
    assert not result.errors, result.errors
    size = ranks.size
    total = [float(sum(range(1, size + 1)))] * 3
    assert ranks.pull("kept") == {
        rank: ([rank + i for i in range(5)], total, [float(size)] * 2) for rank in range(size)
    }


# -- row 1 ---------------------------------------------------------------------


def test_a_rank_that_raises_frees_the_others(ranks: Cluster) -> None:
    told = Told()
    last = ranks.size - 1
    code = (
        f"if rank == {last}:\n    raise ValueError('mine')\n"
        "mx.eval(mx.distributed.all_sum(mx.ones(4), group=g))"
    )
    result = ranks.execute(code, tell=told)
    assert {r: e["ename"] for r, e in result.errors.items()} == {last: "ValueError"}
    assert result.freed == list(range(last))
    assert "the group was made anew" in str(told)
    assert_usable(ranks)


def test_a_collective_that_all_take_part_in_still_ends(two: Cluster) -> None:
    code = (
        "value = mx.distributed.all_sum(mx.ones((256, 1024, 16)), group=g)\n"
        "mx.eval(value)\nif rank:\n    1 / 0\nimport time; time.sleep(0.5)"
    )
    result = two.execute(code)
    assert list(result.errors) == [1] and result.freed == []
    two.execute("assert value.min().item() == value.max().item() == 2")
    assert_usable(two)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_is_broken_off_is_put_back(ranks: Cluster, compiled: bool) -> None:
    name = "compiled_step" if compiled else "step"
    code = (
        "protect(model=model, optimizer=optimizer)\n"
        f"for done in range(3):\n    loss = {name}(x, y)\n    mx.eval(loss, state)\n"
        "before = [v.tolist() for _, v in mlx.utils.tree_flatten(state[:2])]"
    )
    assert not ranks.execute("import mlx.utils\n" + code).errors
    told = Told()
    broken = f"loss = {name}(x, y)\nif rank == 0:\n    raise ValueError\nmx.eval(loss, state)"
    result = ranks.execute(broken, tell=told)
    assert list(result.errors) == [0] and len(result.freed) == ranks.size - 1
    assert "model, optimizer: back at their last completed values on all ranks" in str(told)
    assert not ranks.execute(
        "assert before == [v.tolist() for _, v in mlx.utils.tree_flatten(state[:2])]\n"
        f"for _ in range(2):\n    loss = {name}(x, y)\n    mx.eval(loss, state)\n"
        "ends = [v.tolist() for _, v in mlx.utils.tree_flatten(model.parameters())]"
    ).errors
    ends = ranks.pull("ends")
    assert all(ends[rank] == ends[0] for rank in ends)
    assert_usable(ranks)


def test_what_is_not_protected_is_refused_until_it_is_assigned(ranks: Cluster) -> None:
    told = Told()
    last = ranks.size - 1
    code = (
        f"loss = step(x, y)\nif rank == {last}:\n    raise ValueError\n"
        "mx.eval(loss, model.state, optimizer.state)"
    )
    ranks.execute(code, tell=told)
    assert "refused until assigned again" in str(told) and "model" in str(told)
    errors = ranks.execute("mx.eval(model(x))").errors
    assert set(errors) == set(range(ranks.size))
    assert "model may be half changed: rank" in errors[0]["evalue"]
    errors = ranks.execute("step(x, y)", ranks=[0]).errors  # what a function of the user uses
    assert "model" in errors[0]["evalue"]
    assert not ranks.execute("treasure.sum().item()").errors
    assert not ranks.execute("model = Net()\nmx.eval(model(x))").errors
    assert not ranks.execute("optimizer = optimizer\noptimizer").errors
    assert "loss, state may be half" in ranks.execute("loss, state").errors[0]["evalue"]
    ranks.execute("state = loss = 0")
    assert not ranks.execute("model(x), optimizer, state, loss").errors
    assert_usable(ranks)


def test_an_array_that_was_pending_is_right_in_the_new_group(two: Cluster) -> None:
    two.execute("pending = mx.distributed.all_sum(mx.array([rank + 1.0]), group=g)")
    two.execute("if rank: raise ValueError\nmx.eval(mx.distributed.all_sum(mx.ones(4)))")
    assert not two.execute("assert pending.item() == 3").errors


# -- row 2 ---------------------------------------------------------------------


def test_a_collective_on_some_ranks_is_refused(ranks: Cluster) -> None:
    with pytest.raises(UsageError, match="line 2 calls all_sum of the whole group"):
        ranks.execute("\nz = mx.distributed.all_sum(x)", ranks=[0])
    with pytest.raises(UsageError, match="average_gradients"):
        ranks.execute("nn.average_gradients({})", ranks=[0])
    ranks.execute("lazy = mx.distributed.all_sum(treasure, group=g)", name="Cell In[8]", shift=1)
    errors = ranks.execute("print(lazy)", ranks=[0]).errors
    assert "all_sum in Cell In[8], line 2" in errors[0]["evalue"]
    errors = ranks.execute("mx.eval(add(mx.ones(2)))", ranks=[0]).errors
    assert "collective of the whole group: all_sum in line" in errors[0]["evalue"]
    size = ranks.size
    expected = sum(range(size))
    assert not ranks.execute(f"assert lazy[0].item() == {expected}").errors
    assert_usable(ranks)


def test_sends_among_the_ranks_of_a_cell_are_let_through(ranks: Cluster) -> None:
    code = (
        "if rank == 0:\n    mx.eval(mx.distributed.send(mx.ones(3), 1, group=g))\n"
        "else:\n    got = mx.distributed.recv((3,), mx.float32, 0, group=g).tolist()"
    )
    assert not ranks.execute(code, ranks=[0, 1]).errors
    assert ranks.pull("got", [1]) == {1: [1.0] * 3}
    assert_usable(ranks)


def test_a_step_that_was_refused_does_not_stay_in_what_is_protected(two: Cluster) -> None:
    two.execute("protect(model=model, optimizer=optimizer)\nmx.eval(step(x, y), state)")
    two.execute("before = model.two.weight.tolist()")
    told = Told()
    assert two.execute("mx.eval(step(x, y), state)", ranks=[1], tell=told).errors
    assert "model, optimizer: back at their last completed values" in str(told)
    assert not two.execute("assert before == model.two.weight.tolist()").errors
    assert_usable(two)


def test_what_one_rank_changed_alone_leaves_the_ranks_at_the_same_count(two: Cluster) -> None:
    two.execute("protect(model=model, optimizer=optimizer)\nmx.eval(step(x, y), state)")
    two.execute("model.one.bias = model.one.bias + 5\nmx.eval(model.parameters())", ranks=[0])
    two.execute("model.one.bias = model.one.bias + 5", ranks=[0])
    two.execute("mx.eval(step(x, y), state)\nbefore = model.one.bias.tolist()")
    told = Told()
    two.execute("if rank == 0:\n    raise ValueError\nmx.eval(step(x, y), state)", tell=told)
    assert "model, optimizer: back at their last completed values on all ranks" in str(told)
    assert not two.execute("assert before == model.one.bias.tolist()").errors
    before = two.pull("before")
    assert before[0][0] == pytest.approx(before[1][0] + 10, abs=1e-3)
    assert_usable(two)


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_cell_for_all_changes_on_one_rank_leaves_them_at_the_same_count(
    two: Cluster, times: int
) -> None:
    two.execute("protect(model=model, optimizer=optimizer)\nmx.eval(step(x, y), state)")
    one = "    model.one.bias = model.one.bias + 5\n    mx.eval(model.parameters())\n"
    two.execute("if rank == 0:\n" + one * times)
    two.execute("for _ in range(3):\n    mx.eval(step(x, y), state)")
    two.execute("before = model.one.bias.tolist()")
    told = Told()
    two.execute("if rank == 0:\n    raise ValueError\nmx.eval(step(x, y), state)", tell=told)
    assert "model, optimizer: back at their last completed values on all ranks" in str(told)
    assert not two.execute("assert before == model.one.bias.tolist()").errors
    assert_usable(two)


# -- row 3 ---------------------------------------------------------------------

MISMATCHES = {
    "shape": "mx.eval(mx.distributed.all_sum(mx.ones(4 if rank else 8), group=g))",
    "dtype": "mx.eval(mx.distributed.all_sum(mx.ones(4, mx.float16 if rank else mx.float32)))",
    "operation": (
        "mx.eval(mx.distributed.all_sum(mx.ones(4)) if rank else "
        "mx.distributed.all_gather(mx.ones(4)))"
    ),
    "order": (
        "a, b = mx.ones(4), mx.ones((64, 64))\n"
        "for each in ((a, b) if rank else (b, a)):\n    mx.eval(mx.distributed.all_sum(each))"
    ),
    "large": "mx.eval(mx.distributed.all_sum(mx.ones((2048, 512 if rank else 1024))))",
    "pair": (
        "if rank == 0:\n    mx.eval(mx.distributed.send(mx.ones(3), 1))\n"
        "elif rank == 1:\n    mx.eval(mx.distributed.recv((2,), mx.float32, 0))"
    ),
    "deadlock": (
        "if rank == 0:\n    mx.eval(mx.distributed.recv((3,), mx.float32, 1))\n"
        "else:\n    mx.eval(mx.distributed.all_sum(mx.ones(3)))"
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_ranks_that_disagree_on_a_collective(ranks: Cluster, kind: str) -> None:
    with pytest.raises(CollectiveMismatch) as caught:
        ranks.execute(MISMATCHES[kind], name="Cell In[5]", shift=0)
    message = str(caught.value)
    assert "rank 0: " in message and "rank 1: " in message and "Cell In[5], line" in message
    if kind == "shape":
        assert "rank 0: all_sum  float32 [8]" in message
        assert "rank 1: all_sum  float32 [4]" in message
    assert_usable(ranks)


def test_a_mismatch_does_not_stay_in_what_is_protected(two: Cluster) -> None:
    two.execute("protect(model=model, optimizer=optimizer)\nmx.eval(step(x, y), state)")
    two.execute("before = model.two.weight.tolist()")
    told = Told()
    code = (
        "grads = mx.distributed.all_sum(mx.ones((1, 8 if rank else 16)), group=g)\n"
        "model.two.weight = model.two.weight + grads.sum()\nmx.eval(model.state)"
    )
    with pytest.raises(CollectiveMismatch):
        two.execute(code, tell=told)
    assert not two.execute("assert before == model.two.weight.tolist()").errors
    assert "grads" in str(told)
    assert_usable(two)


# -- row 4 ---------------------------------------------------------------------


def test_a_late_rank_is_named_and_nothing_is_aborted(two: Cluster, recorded: Recorded) -> None:
    code = (
        "import time\nif rank:\n    time.sleep(4.5)\n"
        "late = mx.distributed.all_sum(mx.ones(4), group=g)\nmx.eval(late)"
    )
    started = time.monotonic()
    first: list[float] = []

    def refresh(status: str) -> None:
        if status and not first:
            first.append(time.monotonic() - started)
        recorded.statuses.append(status)

    recorded.refresh = refresh  # type: ignore[method-assign]
    assert not two.execute(code, output=recorded, name="Cell In[2]").errors
    said = next(status for status in recorded.statuses if status)
    assert "rank 0 is waiting" in said and "all_sum of float32 [4] · Cell In[2], line 4" in said
    assert "rank 1 is busy" in said and "time.sleep(4.5)" in said
    assert not two.execute("assert late.tolist() == [2.0] * 4").errors


def test_a_timeout_breaks_nothing_off(two: Cluster) -> None:
    code = (
        "import time\nif rank:\n    time.sleep(2)\n"
        "late = mx.distributed.all_sum(mx.ones(4), group=g)\nmx.eval(late)"
    )
    told = Told()
    with pytest.raises(CellTimeout, match=r"rank 0 is waiting .* in all_sum.*rank 1 is busy"):
        two.execute(code, timeout=1.5, tell=told)
    assert not two.execute("assert late.tolist() == [2.0] * 4", tell=told).errors
    assert str(told) == ""


def test_a_rank_that_never_comes_is_named_and_interrupt_frees(
    two: Cluster, recorded: Recorded
) -> None:
    code = "if rank == 0:\n    mx.eval(mx.distributed.all_sum(mx.ones(4), group=g))"
    cell = in_background(two, code, output=recorded)
    deadline = time.monotonic() + 20
    while not (said := [s for s in recorded.statuses if "will not come" in s]):
        assert time.monotonic() < deadline
    assert "rank 1 is through with this cell, and will not come" in said[0]
    assert "%mlx_dist interrupt frees them" in said[0]
    assert not cell.done()
    two.interrupt()
    cell.result(timeout=10)
    assert_usable(two)


# -- row 5 ---------------------------------------------------------------------


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_frees_a_blocked_collective(two: Cluster, presses: int) -> None:
    output = Recorded()
    raised, told, _ = interrupted(two, BLOCKED, lambda: wait_until_waiting(two, 0), presses, output)
    assert isinstance(raised, KeyboardInterrupt)
    assert "the group was made anew" in told
    shown = "".join(str(content) for _, kind, content in output.messages if kind == "error")
    assert "KeyboardInterrupt" in shown and "broke this collective off" not in shown
    assert_usable(two)


def test_ctrl_c_while_the_cell_is_being_sent(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    start = BenchClient.start_cells

    def interrupted_start(*arguments: Any) -> Any:
        started = start(*arguments)
        signal.raise_signal(signal.SIGINT)
        return started

    monkeypatch.setattr(BenchClient, "start_cells", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        two.execute("while True:\n    pass")
    monkeypatch.undo()
    assert_usable(two)


def test_ctrl_c_in_a_python_loop(ranks: Cluster) -> None:
    def busy() -> None:
        while not all(does.startswith("busy") for does in ranks.doing([0, 1]).values()):
            pass

    raised, _, _ = interrupted(ranks, "import time\nwhile True:\n    time.sleep(0.01)", busy)
    assert isinstance(raised, KeyboardInterrupt)
    assert_usable(ranks)


def test_ctrl_c_in_a_training_loop(ranks: Cluster) -> None:
    assert not ranks.execute("protect(model=model, optimizer=optimizer)").errors
    code = "while True:\n    mx.eval(compiled_step(x, y), state)"

    def stepping() -> None:
        while ranks.client.call("protected", [0], 2)[0][-1] < 5:
            pass

    interrupted(ranks, code, stepping)
    assert not ranks.execute(
        "import mlx.utils\nmx.eval(compiled_step(x, y), state)\n"
        "ends = [v.tolist() for _, v in mlx.utils.tree_flatten(model.parameters())]"
    ).errors
    ends = ranks.pull("ends")
    assert all(ends[rank] == ends[0] for rank in ends)
    assert_usable(ranks)


def test_ranks_interrupted_at_different_places_go_back_together(two: Cluster) -> None:
    two.execute("protect(model=model, optimizer=optimizer)\nmx.eval(step(x, y), state)")
    two.execute("before = model.two.weight.tolist()")
    code = "import time\nif rank:\n    loss = step(x, y)\nwhile True:\n    time.sleep(0.01)"

    def looping() -> None:
        while not all("time.sleep" in does for does in two.doing([0, 1]).values()):
            pass

    raised, told, _ = interrupted(two, code, looping)  # an update is pending on rank 1
    assert isinstance(raised, KeyboardInterrupt)
    assert "model, optimizer: back at their last completed values" in told
    assert not two.execute("assert before == model.two.weight.tolist()").errors
    assert_usable(two)


def test_ctrl_c_in_a_long_evaluation_gives_the_prompt_back(two: Cluster) -> None:
    code = (
        "a = mx.random.normal((700, 700))\n"
        "for _ in range(60):\n    a = mx.tanh(a @ a)\n"
        "if rank == 0:\n    mx.eval(a)\nended = True"
    )

    def computing() -> None:
        while "mx.eval(a)" not in two.doing([0])[0]:
            pass

    raised, _, _ = interrupted(two, code, computing)
    assert isinstance(raised, CellTimeout)
    assert "rank 0 is busy" in str(raised) and "restart --ranks 0" in str(raised)
    assert_usable(two)


# -- row 6 ---------------------------------------------------------------------

KILLS = {
    "idle": "pass",
    "computing": "import time\ntime.sleep(60)",
    "collective": "mx.eval(mx.distributed.all_sum(mx.ones(4))) if rank else time.sleep(60)",
    "streaming": "import time\nwhile True:\n    print('line')\n    time.sleep(0.001)",
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_rank_is_brought_back_by_heal(ranks: Cluster, moment: str) -> None:
    assert not ranks.execute("import time, json", setup=False).errors
    ranks.execute(SETUP + "protect(model=model, optimizer=optimizer)", setup=True)
    ranks.execute(
        "import mlx.utils\nfor _ in range(3):\n    mx.eval(step(x, y), state)\n"
        "def values():\n"
        "    return [v.tolist() for _, v in mlx.utils.tree_flatten([model.parameters(), "
        "optimizer.state])]\n"
        "before = values()"
    )
    before = ranks.pull("before", [0])[0]
    victim = ranks.size - 1
    pid = ranks.info.ranks[victim].pid
    survivors = [rank for rank in range(ranks.size) if rank != victim]
    told = Told()
    if moment == "idle":
        psutil.Process(pid).kill()
    else:
        code = KILLS[moment].replace("if rank else", f"if rank != {victim} else")
        cell = in_background(ranks, code, tell=told)
        if moment == "collective":
            wait_until_waiting(ranks, 0)
        else:
            while not ranks.doing([0])[0].startswith("busy"):
                pass
        psutil.Process(pid).kill()
        if moment in ("computing", "streaming"):
            while victim in ranks.client.living():
                pass
            ranks.interrupt(survivors)
        errors = cell.result(timeout=20).errors
        assert "gone" in errors[victim]["evalue"]
    while victim in ranks.client.living():
        pass
    started = time.monotonic()
    ranks.heal(tell=told)
    took = time.monotonic() - started
    assert f"rank {victim} on" in str(told) and "is back" in str(told), str(told)
    assert ranks.info.ranks[victim].pid != pid
    assert took < 60
    assert not ranks.execute("after = values() if rank != size - 1 else None").errors
    assert ranks.pull("after", survivors) == dict.fromkeys(survivors, before)
    ranks.execute(
        "import json\nafter = [v.tolist() for _, v in "
        "mlx.utils.tree_flatten([model.parameters(), optimizer.state])]"
    )
    assert ranks.pull("after") == dict.fromkeys(range(ranks.size), before)
    assert_usable(ranks)


def test_a_rank_that_was_brought_back_counts_like_the_others(two: Cluster) -> None:
    two.execute(SETUP + "protect(model=model, optimizer=optimizer)", setup=True)
    assert not two.execute("for _ in range(5):\n    mx.eval(step(x, y), state)").errors
    two.restart(ranks=[0])
    told = Told()
    two.execute("mx.eval(step(x, y), state)\nif rank:\n    1 / 0\nstep(x, y)", tell=told)
    two.execute("if rank:\n    1 / 0\nmx.eval(step(x, y), state)", tell=told)
    assert "model, optimizer: back at their last completed values" in str(told)
    with pytest.raises(CollectiveMismatch):
        two.execute(MISMATCHES["deadlock"].replace("recv((3,), mx.float32, 1)", "all_max(x)"))
    assert_usable(two)


@pytest.mark.parametrize("moment", ["_repeat_setup", "_give_state"])
def test_a_heal_that_is_broken_off_is_finished_by_the_next(
    two: Cluster, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    two.execute(SETUP + "protect(model=model, optimizer=optimizer)", setup=True)
    two.execute("for _ in range(5):\n    mx.eval(step(x, y), state)")
    victim = two.info.ranks[1].pid
    psutil.Process(victim).kill()
    while 1 in two.client.living():
        pass

    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Healing, moment, pressed)
    with pytest.raises(KeyboardInterrupt):
        two.heal()
    monkeypatch.undo()
    two.heal()
    assert not two.execute("bias = model.two.bias.tolist(), optimizer.step.item()").errors
    biases = two.pull("bias")
    assert biases[0] == biases[1] and biases[0][1] == 5
    assert_usable(two)


def test_a_variable_that_may_be_wrong_is_not_pulled_either(two: Cluster) -> None:
    two.execute("_mine = total = mx.distributed.all_sum(mx.ones(3), group=g)")
    two.execute("if rank:\n    raise ValueError\nmx.eval(total)")
    for name in ("total", "_mine"):
        with pytest.raises(UsageError, match="may be half changed"):
            two.pull(name, [0])
    two.execute("_mine = total = 1")
    assert two.pull("_mine") == {0: 1, 1: 1}


def test_restart_of_one_rank_keeps_the_others(two: Cluster) -> None:
    two.execute(SETUP, setup=True)
    two.execute("mine = rank + 40")
    told = Told()
    two.restart(ranks=[1], tell=told)
    assert "rank 1 on" in str(told) and "is back" in str(told)
    assert two.pull("mine", [0]) == {0: 40}
    assert not two.execute("assert rank == 0 or 'mine' not in globals()").errors
    assert_usable(two)
