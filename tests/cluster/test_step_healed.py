"""What a rank knows of the run after it was killed and started anew, and the notebook with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import processes, until, value

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.stepping import Stepping

MODEL = """
from mlxbench_kernel import Stepper

def network():
    mx.random.seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

def loss_fn(model, x, y):
    loss = nn.losses.cross_entropy(model(x), y).mean()
    return loss, {"doubled": 2 * loss}

mx.random.seed(11 + rank)  # each rank has data of its own
X, Y = mx.random.normal((500, 8, 8)), mx.random.randint(0, 3, (500, 8))

def made():
    model, optimizer = network(), optim.Adam(1e-2)
    mx.random.seed(5)
    return Stepper(model, optimizer, loss_fn, lambda n: (X[n % 500], Y[n % 500]), replicas=10)

"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    before = processes()
    cluster = Cluster.up(2, seed=7, keep=True)
    try:
        assert not cluster.execute(MODEL + "stepper = made()", setup=True).errors
        yield cluster
    finally:
        Cluster.attach(cluster.id).down()
    assert processes() <= before


def series(stepping: Stepping, rank: int, name: str = "loss", branch: str = "main") -> list[float]:
    found: list[float] = stepping.histories[rank].series(branch, name, 100_000)[1].tolist()
    return found


def kill(cluster: Cluster, rank: int) -> None:
    os.kill(cluster.info.ranks[rank].pid, signal.SIGKILL)
    until(lambda: len(cluster.living()) == 1)


def journal(stepping: Stepping) -> list[tuple[int, str, str]]:
    return [(each.step, each.branch, each.text) for each in stepping.state.journal]


def test_rank_0_comes_back_with_the_whole_run(cluster: Cluster) -> None:
    stepping = Stepping(cluster)
    stepping.freeze("layers.0")
    stepping.step(12)
    stepping.set(learning_rate=0.003)
    stepping.break_at("doubled < 0")
    stepping.step(12)
    stepping.branch("warm", at=20)
    stepping.set(learning_rate=0.02)
    stepping.step(10)
    noted, script = journal(stepping), stepping.script()
    curves = series(stepping, 0), series(stepping, 0, branch="warm")
    own = series(stepping, 0, "loss_rank"), series(stepping, 0, "seconds", "warm")
    sampled = stepping.samples[0].samples("main")
    assert len(curves[0]) == 24 and len(curves[1]) == 10 and sampled

    kill(cluster, 0)
    cluster.heal()
    # In this notebook nothing is missing, not even what the old process alone had measured.
    assert journal(stepping) == noted and stepping.state.branch == "warm"
    assert (series(stepping, 0), series(stepping, 0, branch="warm")) == curves
    assert (series(stepping, 0, "loss_rank"), series(stepping, 0, "seconds", "warm")) == own
    assert stepping.samples[0].samples("main") == sampled
    assert stepping.script() == script  # at once, before a step is taken
    for part in ("frozen", "breakpoints.active", "measured", "branches.plain()"):
        told = value(cluster, f"stepper.{part}")
        assert told[0] == told[1], part
    stepping.step(10)
    curves = series(stepping, 0), series(stepping, 0, branch="warm")
    assert len(curves[1]) == 20 and series(stepping, 1, branch="warm") == curves[1]
    noted, script = journal(stepping), stepping.script()
    stepping.back(5)

    # Another notebook has only what ranks hold.
    stepping._closed.set()
    cluster.client.close(linger=0)
    again = Cluster.attach(cluster.id)
    found = Stepping(again)
    assert journal(found) == noted and found.state.step == 35
    for rank in (0, 1):
        assert (series(found, rank), series(found, rank, branch="warm")) == curves
        assert found.samples[rank].samples("main") == sampled
        assert found.samples[rank].get("main", sampled[0], "grad_norm") is not None
    found.to(40)
    assert found.script() == script
    # What rank 1 had measured says nothing of rank 0.
    assert len(series(found, 1, "loss_rank", "warm")) == 20
    assert len(series(found, 0, "loss_rank", "warm")) == 10

    # The script leads to the same bits.
    value(again, f"again = made(); exec({script!r}); replay(again)")
    bits = "again.history.series('main', 'loss')[1].tolist()[-10:]"
    assert value(again, bits) == {0: curves[1][-10:], 1: curves[1][-10:]}
    found.close()


def test_breakpoints_stop_all_ranks_after_one_came_back(cluster: Cluster) -> None:
    stepping = Stepping(cluster)
    stepping.step(7)
    stepping.break_at("doubled > 0")
    kill(cluster, 1)
    cluster.heal()
    stepping.run(10)
    assert stepping.wait().said == "step 8: breakpoint: doubled > 0 holds"
    assert value(cluster, "stepper.step") == {0: 8, 1: 8}
    assert series(stepping, 1, "loss_rank")[-1] != series(stepping, 0, "loss_rank")[-1]
    stepping.reset()  # the ranks are at a step that was tried already, which only one has done
    kill(cluster, 1)
    cluster.heal()
    stepping.no_break("doubled > 0")
    stepping.step(3)
    assert len(series(stepping, 0)) == len(series(stepping, 1)) == 3
    stepping.close()


def test_each_rank_draws_its_own_random_numbers_after_one_came_back(cluster: Cluster) -> None:
    own = MODEL.replace("mx.random.seed(5)", "mx.random.seed(5 + rank)")
    cluster.setup.cells.clear()
    assert not cluster.execute(own + "stepper = made()", setup=True).errors
    stepping = Stepping(cluster)
    stepping.step(20)
    expected = series(stepping, 0)
    stepping.reset()
    stepping.step(8)
    kill(cluster, 1)
    told: list[str] = []
    cluster.heal(tell=told.append)
    assert not [line for line in told if "random" in line]
    stepping.step(12)
    assert series(stepping, 0) == expected  # dropout as if nothing had happened
    # What does not come from drawing is not found out, and said.
    assert value(cluster, "mx.random.seed(50 + rank); stepper.keep(); None") is not None
    stepping.step(2)
    kill(cluster, 1)
    cluster.heal(tell=told.append)
    assert any(line.startswith("rank 1: from step 22 on it takes the random") for line in told)
    stepping.close()


def test_all_ranks_started_anew_have_what_each_had_measured(cluster: Cluster) -> None:
    stepping = Stepping(cluster)
    stepping.step(8)
    stepping.set(learning_rate=0.003)
    stepping.step(4)
    names = ("loss", "loss_rank", "seconds")
    before = [[series(stepping, rank, name) for name in names] for rank in (0, 1)]
    noted, script = journal(stepping), stepping.script()
    cluster.restart([0, 1])
    assert stepping.script() == script
    assert [[series(stepping, rank, name) for name in names] for rank in (0, 1)] == before
    assert journal(stepping) == noted
    stepping.step(4)
    assert len(series(stepping, 0, "seconds")) == 16
    stepping.close()


def test_the_part_of_a_sharded_model_is_not_taken_from_another_rank(
    cluster: Cluster, tmp_path: Path
) -> None:
    sharded = """
from mlxbench_kernel import Stepper
from mlx.nn.layers.distributed import shard_linear
mx.random.seed(3)
whole = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
parts = nn.Sequential(
    shard_linear(whole.layers[0], "all-to-sharded", group=group), nn.ReLU(),
    shard_linear(whole.layers[2], "sharded-to-all", group=group),
)
own = optim.Adam(1e-2)
inputs, labels = mx.random.normal((50, 8, 8)), mx.random.randint(0, 3, (50, 8))
value_and_grad = nn.value_and_grad(
    parts, lambda x, y: nn.losses.cross_entropy(parts(x), y).mean()
)
def train(x, y):
    loss, gradients = value_and_grad(x, y)
    own.update(parts, gradients)
    return loss
stepper = Stepper(
    step=train, state={"model": parts, "optimizer": own},
    batches=[(inputs[n], labels[n]) for n in range(50)],
)
    """
    cluster.setup.cells.clear()
    assert not cluster.execute(sharded, setup=True).errors
    stepping = Stepping(cluster)
    stepping.step(12)
    stepping.save(str(tmp_path / "run"))
    stepping.step(8)
    expected = series(stepping, 0)[12:]
    weights = "parts.layers[0].weight.sum().item()"
    before = value(cluster, weights)
    kill(cluster, 1)
    told: list[str] = []
    cluster.heal(tell=told.append)
    assert any(line.startswith("stepper is sharded") for line in told)
    after = value(cluster, weights)
    assert after[0] == before[0] and after[1] not in before.values()
    with pytest.raises(UsageError, match=r"ranks are at steps 20 \(rank 0\), 0 \(rank 1\)"):
        stepping.step()
    stepping.load(str(tmp_path / "run"))
    stepping.step(8)
    assert series(stepping, 0) == series(stepping, 1) == expected
    stepping.close()


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_training_goes_on_with_the_ranks_that_are_left(compiled: bool) -> None:
    """What ranks tell each other goes along with their gradients: of those that are there."""
    cluster = Cluster.up(3, seed=7)
    try:
        code = MODEL.replace("replicas=10", f"replicas=10, compile={compiled}")
        assert not cluster.execute(code + "stepper = made()\nstepper.run(40)").errors
        look = "[stepper.history.series('main', name)[1].tolist() for name in ('{}', '{}')]"
        mean, own = zip(*value(cluster, look.format("doubled", "loss_rank")).values(), strict=True)
        assert mean[0] == mean[1] == mean[2] and len(mean[0]) == 40
        assert mean[0] == pytest.approx([2 * sum(three) / 3 for three in zip(*own, strict=True)])
        os.kill(cluster.info.ranks[0].pid, signal.SIGKILL)
        until(lambda: len(cluster.living()) == 2)
        cluster.heal(drop=True)
        assert not cluster.execute("stopped = str(stepper.run(40))").errors
        assert set(value(cluster, "stopped").values()) == {"step 80"}
        mean, own = zip(*value(cluster, look.format("loss", "loss_rank")).values(), strict=True)
        assert mean[0][40:] == mean[1][40:]
        assert mean[0][40:] == pytest.approx(
            [sum(two) / 2 for two in zip(own[0][40:], own[1][40:], strict=True)]
        )
    finally:
        cluster.down()
