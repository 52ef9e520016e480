"""The stepper of two ranks, driven as a notebook drives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import wait_until_waiting
from running import processes, run, until, value

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.remote.mirror import State
from mlxbench_kernel.remote.stepping import AGAIN, Stepping

SETUP = """
from mlxbench_kernel import Stepper
def network():
    mx.random.seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

def loss_fn(model, x, y):
    return nn.losses.cross_entropy(model(x), y).mean()

mx.random.seed(11 + rank)  # each rank has data of its own
X, Y = mx.random.normal((500, 8, 8)), mx.random.randint(0, 3, (500, 8))
model, optimizer = network(), optim.Adam(1e-2)
"""
STEPPER = """
mx.random.seed(5)
stepper = Stepper(
    model, optimizer, loss_fn, lambda n: (X[n % 500], Y[n % 500]), replicas=10{}
)
"""


def losses(stepping: Stepping, rank: int = 0, branch: str = "main") -> list[float]:
    found: list[float] = stepping.histories[rank].series(branch, "loss", 100_000)[1].tolist()
    return found


@pytest.fixture(params=["", ", compile=True"], ids=["plain", "compiled"])
def stepping(request: pytest.FixtureRequest, ranks: Cluster) -> Iterator[Stepping]:
    run(ranks, SETUP)
    run(ranks, STEPPER.format(request.param))
    made = Stepping(ranks)
    yield made
    made.close()


def test_back_and_forward_gives_the_same_bits_on_both_ranks(stepping: Stepping) -> None:
    stepping.step(20)
    first = losses(stepping), losses(stepping, 1)
    own = value(stepping.cluster, "stepper.history.series('main', 'loss_rank')[1].tolist()")
    assert own[0] != own[1] and first[0] == first[1] and len(first[0]) == 20
    stepping.back(13)
    again = value(stepping.cluster, "[stepper.advance().record['loss_rank'] for _ in range(13)]")
    assert {rank: every[7:] for rank, every in own.items()} == again  # type: ignore[index]
    same = value(stepping.cluster, "stepper.replicas.differ()")
    assert same == {0: False, 1: False}


VARYING = """
from mlxbench_kernel.training import loop
usual, loop.LEASE_SECONDS = loop.LEASE_SECONDS, 1000
taken = iter(range(1000))
def varying(model, x, y):
    many = 12 if next(taken) < 30 else 0
    return loss_fn(model, x, y), {f"m{n}": mx.array(float(rank + n)) for n in range(many)}
stepper = Stepper(model, optimizer, varying, lambda n: (X[n], Y[n]), check=False)
stepper.run(80)
loop.LEASE_SECONDS = usual
history = stepper.history
[history.series("main", name, 1000)[1].tolist() for name in ("loss", "loss_rank", "m3")]
"""


def test_steps_of_a_lease_may_have_more_metrics_than_its_last_one(ranks: Cluster) -> None:
    run(ranks, SETUP)
    found = value(ranks, VARYING)
    means, own, metric = found[0]
    assert means == found[1][0] and len(means) == 80
    assert means == pytest.approx(np.mean([own, found[1][1]], axis=0).tolist(), rel=1e-6)
    assert metric == [3.5] * 30


def test_gradients_are_averaged_over_the_ranks(stepping: Stepping) -> None:
    stepping.step(3)
    run(
        stepping.cluster,
        """
mine = [each for _, each in __import__("mlx.utils").utils.tree_flatten(model.parameters())]
hand, other = network(), optim.Adam(1e-2)
value_and_grad = nn.value_and_grad(hand, lambda x, y: loss_fn(hand, x, y))
mx.random.seed(5)
for n in range(3):
    _, gradients = value_and_grad(X[n], Y[n])
    other.update(hand, nn.average_gradients(gradients))
    mx.eval(hand.parameters(), other.state)
theirs = [each for _, each in __import__("mlx.utils").utils.tree_flatten(hand.parameters())]
        """,
    )
    close = value(
        stepping.cluster, "all(mx.allclose(a, b, atol=1e-5).item() for a, b in zip(mine, theirs))"
    )
    assert close == {0: True, 1: True}


def test_what_ranks_tell_each_other_is_not_read_where_it_was_broken_off(ranks: Cluster) -> None:
    """NumPy alone would read whatever is in the memory, and say where the other rank is."""
    run(ranks, SETUP)
    run(ranks, STEPPER.format(""))
    errors = ranks.execute("if rank == 1: nonsense\nstepper.run(5)").errors
    assert {rank: error["ename"] for rank, error in errors.items()} == {1: "NameError"}
    assert value(ranks, "stepper.run(3).step") == {0: 3, 1: 3}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_ranks_tell_each_other_goes_with_their_gradients(ranks: Cluster, dtype: str) -> None:
    """Of gradients of another type than float32 it has to go alone, once in a lease."""
    run(ranks, SETUP + f"model.set_dtype(mx.{dtype}); X = X.astype(mx.{dtype})")
    run(ranks, STEPPER.format(", check=False").replace("replicas=10", "replicas=0"))
    run(
        ranks,
        """
from mlxbench_kernel.rank.collectives import GROUP
stepper.run(40)
before = GROUP.spent(0)[0]
stepper.run(40)
names = [each["operation"] for each in GROUP.log(before)]
own = stepper.history.series("main", "loss_rank")[1].tolist()
mean = stepper.history.series("main", "loss")[1].tolist()
""",
    )
    own, mean = value(ranks, "own"), value(ranks, "mean")
    assert (
        mean[0]
        == mean[1]
        == pytest.approx([sum(two) / 2 for two in zip(own[0], own[1], strict=True)])
    )
    for names in value(ranks, "names").values():
        gathers = names.count("all_gather")
        assert (gathers > 4) == (dtype == "bfloat16") and names.count("all_sum") >= 40


def test_it_plays_while_cells_run_between_its_steps(stepping: Stepping) -> None:
    stepping.play()
    until(lambda: stepping.state.step > 5)
    for _ in range(3):
        steps = value(stepping.cluster, "stepper.step")
        assert len(set(steps.values())) == 1
    before = stepping.state.step
    until(lambda: stepping.state.step > before + 3)
    assert stepping.state.playing
    stepping.pause()
    state = stepping.state
    assert not state.playing and state.said == f"paused after step {state.step}"
    assert losses(stepping)[-1] == losses(stepping, 1)[-1]
    assert len(losses(stepping)) == state.step


def test_settings_change_while_it_plays(stepping: Stepping) -> None:
    stepping.play()
    until(lambda: stepping.state.step > 5)
    stepping.set(learning_rate=0.5)
    with pytest.raises(UsageError, match="learning_rate is a number, not 'abc'"):
        stepping.set(learning_rate="abc")
    before = stepping.state.step
    until(lambda: stepping.state.step > before + 3)
    stepping.pause()
    rates = stepping.histories[1].series("main", "learning_rate")[1]
    assert rates[0] == pytest.approx(0.01) and rates[-1] == pytest.approx(0.5)
    assert [each.text for each in stepping.state.journal] == ["learning_rate = 0.5"]


def test_it_runs_until_a_condition_of_all_ranks_holds(stepping: Stepping) -> None:
    stepping.until("step >= 12 and loss > 0")
    assert stepping.wait().said == "step 12: step >= 12 and loss > 0 holds"
    assert value(stepping.cluster, "stepper.step") == {0: 12, 1: 12}
    with pytest.raises(UsageError, match="lss, at character 1"):
        stepping.until("lss < 3")
    stepping.run(5)
    assert stepping.wait().step == 17


def test_replicas_that_differ_are_found_and_made_equal(stepping: Stepping) -> None:
    stepping.step(5)
    run(
        stepping.cluster,
        "if rank == 1: model.layers[3].bias = model.layers[3].bias + 1\n"
        "mx.eval(model.parameters()); stepper.keep()",
    )
    stepping.play()
    said = stepping.wait().said
    assert said == "step 10: replicas differ: layers.3.bias on rank 1" or "layers.0" in said
    stepping.equalize(0)
    assert value(stepping.cluster, "stepper.replicas.differ()") == {0: False, 1: False}
    stepping.run(10)
    assert stepping.wait().said == "step 20"
    own = value(stepping.cluster, "stepper.history.series('main', 'loss_rank')[1].tolist()")
    stepping.to(7)
    assert value(stepping.cluster, "stepper.replicas.differ()") == {0: True, 1: True}
    again = value(stepping.cluster, "[stepper.advance().record['loss_rank'] for _ in range(13)]")
    assert {rank: every[7:] for rank, every in own.items()} == again  # type: ignore[index]
    assert value(stepping.cluster, "stepper.replicas.differ()") == {0: False, 1: False}
    assert "stepper.equalize(0)" in stepping.script()


def test_a_rank_that_runs_out_of_batches_is_named(ranks: Cluster) -> None:
    run(ranks, SETUP)
    run(
        ranks,
        "stepper = Stepper(model, optimizer, loss_fn, [(X[n], Y[n]) for n in range(8 - 2 * rank)])",
    )
    made = Stepping(ranks)
    try:
        made.play()
        assert "step 6: out of batches on rank 1 (the others have more)" in made.wait().said
        made.restart_batches()
        assert made.state.said == ""
        made.run(4)
        assert made.wait().step == 10
        made.to(2)  # and once more past the end of the batches
        made.run(8)
        assert made.wait().step == 10
    finally:
        made.close()


def test_how_often_replicas_are_compared_is_told(stepping: Stepping) -> None:
    stepping.step(2)
    assert stepping.state.comparing == 10


def test_ranks_agree_on_what_one_that_was_started_anew_does_not_know(ranks: Cluster) -> None:
    run(ranks, SETUP)
    run(ranks, STEPPER.format(", check=False").replace("replicas=10", "replicas=None"))
    run(ranks, "stepper.exact = rank > 0; stepper.replicas.interval = 50 + 150 * rank")
    run(ranks, "stepper.run(1)")
    found = value(ranks, "(stepper.exact, stepper.replicas.interval)")
    assert found == {0: (False, 200), 1: (False, 200)}


def test_states_on_disk_go_with_the_rank(ranks: Cluster) -> None:
    run(ranks, SETUP)
    run(ranks, STEPPER.format(", budget=20_000, check=False"))
    run(ranks, "from mlxbench_kernel.training import keeping; keeping.SHORT = 0")
    run(ranks, "stepper.run(40); keeping.SHORT = 0.03")
    folders = value(ranks, "str(stepper.snapshots._folder)")
    for rank, folder in folders.items():
        assert f"rank-{rank}" in str(folder) and [*Path(str(folder)).iterdir()]


def test_who_waits_for_a_run_waits_on_while_others_use_the_ranks(stepping: Stepping) -> None:
    first = stepping.state.step
    stepping.run(150)

    def use() -> None:
        for _ in range(5):
            assert not stepping.cluster.execute("seen = 1").errors

    other = threading.Thread(target=use)
    other.start()
    assert stepping.wait().step == first + 150
    other.join()


def test_an_interrupt_pauses_and_loses_nothing(stepping: Stepping) -> None:
    stepping.step(3)
    stepping.play()
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        stepping.wait()
    step = stepping.state.step
    assert not stepping.state.playing and value(stepping.cluster, "stepper.step") == {
        0: step, 1: step,
    }  # fmt: skip
    stepping.step()
    assert stepping.state.step == step + 1


def test_a_run_that_was_broken_off_does_not_go_on_after_a_cell(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll, request = stepping._mirror.poll, stepping._request_stop
    comes = threading.Event()

    def late() -> list[int]:
        if threading.current_thread() is stepping._thread:
            comes.wait(10)  # it has not ended yet when the cell comes
        return poll()

    def requested() -> None:
        comes.set()
        request()

    stepping.play()
    first = stepping.state.step
    until(lambda: stepping.state.step > first)
    monkeypatch.setattr(stepping._mirror, "poll", late)
    monkeypatch.setattr(stepping, "_request_stop", requested)
    stepping.cluster.interrupt()
    assert not stepping.cluster.execute("seen = 1").errors
    assert not stepping.state.playing
    step = value(stepping.cluster, "stepper.step")[0]
    stepping.step()
    assert stepping.state.step == step + 1


def test_without_a_stepper_it_says_how_to_make_one() -> None:
    before = processes()
    cluster = Cluster.up(2)
    try:
        with pytest.raises(UsageError, match=r"ranks 0, 1: no stepper: make one in a %%mlx_dist"):
            Stepping(cluster)
    finally:
        cluster.down()
    assert processes() <= before


def test_a_second_interrupt_breaks_off_a_step_that_hangs(ranks: Cluster) -> None:
    run(ranks, SETUP + "import time\nhangs = [True]")
    run(
        ranks,
        """
def batch(n):
    if n == 5 and rank == 1 and hangs[0]:
        time.sleep(1000)
    return mx.ones((8, 8)), mx.zeros(8, mx.int32)
stepper = Stepper(model, optimizer, loss_fn, batch)
""",
    )
    made = Stepping(ranks)
    made.step(2)
    for _ in range(2):  # which changes what rank 1 has, and not what rank 0 has
        made.equalize(0)
    shown: list[str] = []

    def interrupted(state: State) -> None:
        if state.step == 5:
            shown.append(state.doing)
            raise KeyboardInterrupt

    try:
        made.run(18)
        with pytest.raises(KeyboardInterrupt):
            made.wait(interrupted)
        assert AGAIN in shown[1]
        # Of steps under 3 ms not each one is kept.
        assert not made.state.playing and 2 <= made.state.step <= 5
        run(ranks, "stepper.step, model, optimizer")  # none of them is refused
        run(ranks, "hangs[0] = False")
        made.run(20 - made.state.step)
        assert made.wait().step == 20
    finally:
        made.close()


HANGING = """
import time
from mlxbench_kernel.training import building, keeping, loop
usual = loop.LEASE_SECONDS, keeping.SHORT, loop.DATA_SHARE, loop.WORTH, building.helps
loop.LEASE_SECONDS, keeping.SHORT = 1000, 0  # the second is long, and all is kept
hangs = [True]
def batch(n):
    if n == 20 and rank == 1 and hangs[0]:
        time.sleep(1000)
    return X[n], Y[n]
mx.random.seed(5)
stepper = Stepper(model, optimizer, loss_fn, batch)
"""
USUAL = """
loop.LEASE_SECONDS, keeping.SHORT, loop.DATA_SHARE, loop.WORTH, building.helps = usual
"""
# As on a GPU, and however long batches take.
AHEAD = "loop.DATA_SHARE, loop.WORTH, building.helps = 1000.0, -1.0, lambda: True"


def wait_until_it_hangs(made: Stepping) -> None:
    """Until both ranks have kept step 20, rank 1 hangs, and rank 0 waits for it."""
    until(lambda: made.state.step == 20)
    until(lambda: "time.sleep" in made.cluster.doing([1])[1])
    wait_until_waiting(made.cluster, 0)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_lease_that_is_broken_off_is_in_the_history_as_far_as_it_came(
    ranks: Cluster, ahead: bool
) -> None:
    run(ranks, SETUP + HANGING + (AHEAD if ahead else ""))
    made = Stepping(ranks)
    try:
        made.run(40)
        wait_until_it_hangs(made)
        ranks.client.call("interrupt", [0, 1], 1)
        until(lambda: not made.state.playing)
        assert made.state.step == 20 and len(losses(made)) == 1
        run(ranks, "hangs[0] = False")
        made.run(10)
        assert made.wait().step == 30
        found = losses(made)
        own = value(ranks, "stepper.history.series('main', 'loss_rank')[1].tolist()")
        assert len(found) == 30 and losses(made, 1) == found and own[0] != own[1]
        run(ranks, "stepper.to(0)")
        again = value(ranks, "[stepper.advance().record['loss_rank'] for _ in range(30)]")
        assert again == own
    finally:
        run(ranks, USUAL)
        made.close()


def test_of_a_lease_in_which_a_rank_was_killed_the_others_have_their_own_numbers() -> None:
    before = processes()
    cluster = Cluster.up(2, seed=7)
    try:
        assert not cluster.execute(SETUP + HANGING, setup=True).errors
        pid = value(cluster, "__import__('os').getpid()")[1]
        made = Stepping(cluster)
        made.play()
        wait_until_it_hangs(made)
        os.kill(int(str(pid)), signal.SIGKILL)
        until(lambda: not made.state.playing)
        cluster.setup.cells[:] = [each.replace("[True]", "[False]") for each in cluster.setup.cells]
        cluster.heal()
        until(lambda: made.state.step > 30)
        made.pause()
        until(lambda: made.histories[0].last("main")["step"] == made.state.step)
        steps, _ = made.histories[0].series("main", "loss_rank", 100_000)
        assert steps.tolist() == list(range(1, made.state.step + 1))
        of_all, _ = made.histories[0].series("main", "loss", 100_000)
        assert of_all.tolist() == [1, *range(21, made.state.step + 1)]
        made.close()
    finally:
        cluster.down()
    assert processes() <= before


def test_a_checkpoint_is_loaded_with_none_of_the_curve_before(
    stepping: Stepping, tmp_path: Path
) -> None:
    stepping.step(10)
    stepping.save(str(tmp_path / "run"))
    stepping.step(5)
    stepping.load(str(tmp_path / "run"))
    assert losses(stepping) == losses(stepping, 1) == [] and stepping.state.said == ""
    stepping.step(3)
    assert len(losses(stepping)) == len(losses(stepping, 1)) == 3


def test_a_second_stepper_takes_the_place_of_the_first(ranks: Cluster) -> None:
    run(ranks, SETUP + STEPPER.format(""))
    made = Stepping(ranks)
    try:
        made.step(20)
        run(ranks, "model, optimizer = network(), optim.Adam(1e-3)" + STEPPER.format(""))
        for step in (12, 24):
            made.step(12)
            own = value(ranks, "stepper.history.series('main', 'loss')[1].tolist()")
            assert [losses(made), losses(made, 1)] == [own[0], own[1]]
            assert made.state.step == step and len(own[0]) == step
        taken = value(ranks, "stepper.samples.samples('main')")
        assert made.samples[1].samples("main") == taken[1]
    finally:
        made.close()


def test_a_rank_killed_while_it_plays_comes_back_and_training_goes_on() -> None:
    before = processes()
    cluster = Cluster.up(2, seed=7)
    try:
        assert not cluster.execute(SETUP + STEPPER.format(""), setup=True).errors
        made = Stepping(cluster)
        made.play()
        until(lambda: made.state.step > 20)
        run(cluster, "import os; pid = os.getpid()")
        until(lambda: made.state.playing and made.state.step > 40)
        first = losses(made)
        with made.between():
            pid = cluster.pull("pid")[1]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not made.state.playing)
        assert "rank 1" in made.state.said
        with pytest.raises(BenchError):
            made.step()
        cluster.heal()
        gone_on = made.state.step
        until(lambda: made.state.step > gone_on + 10)
        made.pause()
        steps = value(cluster, "stepper.step")
        assert len(set(steps.values())) == 1
        assert value(cluster, "stepper.replicas.differ()") == {0: False, 1: False}
        assert losses(made)[: len(first)] == first
        assert losses(made, 1) == losses(made)  # also of what it did before it was killed
        made.back(3)
        made.close()
    finally:
        cluster.down()
    assert processes() <= before


def test_another_notebook_finds_the_run_with_its_history() -> None:
    before = processes()
    cluster = Cluster.up(2, seed=7, keep=True)
    try:
        assert not cluster.execute(SETUP + STEPPER.format(""), setup=True).errors
        made = Stepping(cluster)
        made.step(30)
        first = losses(made)
        made.play()
        until(lambda: made.state.step > 40)
        made._closed.set()  # this notebook's kernel is killed: it drives no more
        cluster.client.close(linger=0)
        again = Cluster.attach(cluster.id)
        found = Stepping(again)
        until(lambda: found.state.step > 60)
        value(again, "1")  # it goes on after a cell
        gone_on = found.state.step
        until(lambda: found.state.step > gone_on + 10)
        assert found.state.playing and losses(found)[:30] == losses(found, 1)[:30] == first
        found.pause()
        state = found.state
        assert not state.playing and len(set(value(again, "stepper.step").values())) == 1
        found.back(5)
        assert found.state.step == state.step - 5
        os.kill(again.info.ranks[0].pid, signal.SIGKILL)
        until(lambda: len(again.living()) == 1)
        again.heal()
        found.run(10)
        assert found.wait().step == state.step + 5
        found.close()
    finally:
        Cluster.attach(cluster.id).down()
    assert processes() <= before


def test_a_sharded_model_with_a_step_of_its_own(ranks: Cluster) -> None:
    run(ranks, SETUP)
    run(
        ranks,
        """
from mlx.nn.layers.distributed import shard_linear
whole = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
mx.eval(mx.distributed.all_sum(mx.zeros(1)))
sharded = nn.Sequential(
    shard_linear(whole.layers[0], "all-to-sharded", group=group), nn.ReLU(),
    shard_linear(whole.layers[2], "sharded-to-all", group=group),
)
own = optim.Adam(1e-2)
mx.random.seed(2)
inputs, labels = mx.random.normal((50, 8, 8)), mx.random.randint(0, 3, (50, 8))
value_and_grad = nn.value_and_grad(sharded, lambda x, y: loss_fn(sharded, x, y))
def train(x, y):
    loss, gradients = value_and_grad(x, y)
    own.update(sharded, gradients)
    return loss
stepper = Stepper(
    step=train, state={"model": sharded, "optimizer": own}, replicas=2,
    batches=[(inputs[n], labels[n]) for n in range(50)],
)
        """,
    )
    made = Stepping(ranks)
    try:
        made.step(12)
        first = losses(made)
        assert first == losses(made, 1) and made.state.said == "step 12"
        made.back(6)
        again = value(ranks, "[stepper.advance().record['loss'] for _ in range(6)]")
        assert again == {0: first[6:], 1: first[6:]}
    finally:
        made.close()


def test_it_works_in_a_plain_script(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        """
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim
from mlxbench_kernel import Stepper
group = mx.distributed.init()
mx.random.seed(3)
model = nn.Linear(4, 2)
mx.random.seed(group.rank())
X, Y = mx.random.normal((40, 8, 4)), mx.random.randint(0, 2, (40, 8))
stepper = Stepper(
    model, optim.SGD(0.1),
    lambda model, x, y: nn.losses.cross_entropy(model(x), y).mean(), [*zip(X, Y)],
)
print(stepper.run(20), group.size(), flush=True)
first = stepper.history.series("main", "loss")[1].tolist()
stepper.back(8)
assert [stepper.advance().record["loss"] for _ in range(8)] == first[12:]
print(stepper.run(until="step == 30 or loss < 0"), flush=True)
        """
    )
    command = [str(Path(sys.executable).with_name("mlx.launch")), "-n", "2"]
    done = subprocess.run(
        [*command, "--python", sys.executable, str(script)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.count("step 20 2") == 2, done.stdout + done.stderr
    assert done.stdout.count("step 30: step == 30 or loss < 0 holds") == 2
