"""Where ranks cannot be freed in place, they are started anew with what was protected."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faults import BLOCKED, SETUP, Told, in_background, interrupted, wait_until_waiting
from needs import require
from running import processes, until

from mlxbench_kernel.cluster import Cluster

RESCUE = Path("~/.cache/mlxbench/rescue").expanduser()
TRAIN = "for _ in range(3):\n    mx.eval(compiled_step(x, y), state)\n"
VALUES = (
    "import mlx.utils\nvalues = [v.tolist() for _, v in "
    "mlx.utils.tree_flatten([model.parameters(), optimizer.state])]"
)


@pytest.fixture(scope="module", params=["mpi", "no native module"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Cluster]:
    before = processes()
    if request.param == "mpi":
        require(bool(shutil.which("mpirun")), "no Open MPI: apt install openmpi-bin libopenmpi3")
        cluster = Cluster.up(2, backend="mpi", seed=7)
    else:
        # A compiler that does not work, and no module compiled before.
        folder = str(tmp_path_factory.mktemp("cache"))
        cluster = Cluster.up(2, seed=7, env={"CXX": "/bin/false", "MLXBENCH_CACHE": folder})
        assert "works without the native module" in " ".join(cluster.info.notes)
    assert not cluster.info.renewable
    yield cluster
    cluster.down()
    until(lambda: processes() <= before)
    assert not RESCUE.exists() or not list(RESCUE.iterdir())


@pytest.fixture
def trained(cluster: Cluster) -> Cluster:
    marked = SETUP.replace("layers.distributed.AllToShardedLinear", "Linear").replace(
        "(8, 8, group=group)", "(8, 8)"
    )
    code = marked + "protect(model=model, optimizer=optimizer)"
    assert not cluster.execute(code, setup=True, timeout=60).errors
    assert not cluster.execute(TRAIN + VALUES, timeout=60).errors
    return cluster


def assert_rebuilt(cluster: Cluster, told: Told, before: object) -> None:
    assert "all ranks were started anew" in str(told), str(told)
    assert "model, optimizer: back at" in str(told), str(told)
    assert not cluster.execute(VALUES, timeout=60).errors
    assert cluster.pull("values") == {0: before, 1: before}
    assert not cluster.execute("mx.eval(compiled_step(x, y), state)", timeout=60).errors
    assert not cluster.execute("assert mx.distributed.all_sum(mx.array(rank)).item() == 1").errors


def test_a_rank_that_raises(trained: Cluster) -> None:
    before = trained.pull("values", [0])[0]
    told = Told()
    code = (
        "loss = compiled_step(x, y)\nif rank:\n    raise ValueError('mine')\nmx.eval(loss, state)"
    )
    result = trained.execute(code, tell=told, timeout=60)
    assert [error["ename"] for error in result.errors.values()] == ["ValueError"]
    assert_rebuilt(trained, told, before)


def test_ctrl_c_in_a_blocked_collective(trained: Cluster) -> None:
    before = trained.pull("values", [0])[0]

    def blocked() -> None:
        if trained.info.backend == "mpi":
            wait_until_waiting(trained, 0)
        else:
            until(lambda: "all_sum" in trained.doing([0])[0])

    _, told, _ = interrupted(trained, BLOCKED, blocked)
    assert_rebuilt(trained, Told([told]), before)


def test_a_killed_rank(trained: Cluster) -> None:
    before = trained.pull("values", [0])[0]
    told = Told()
    cell = in_background(trained, "import time\ntime.sleep(60)", tell=told)
    until(lambda: trained.doing([0])[0].startswith("busy"))
    psutil.Process(trained.info.ranks[1].pid).kill()
    until(lambda: 1 not in trained.client.living())
    trained.interrupt([0], told)
    cell.result(timeout=60)
    trained.heal(tell=told)
    assert_rebuilt(trained, told, before)


def test_an_operation_that_the_backend_lacks_costs_nothing(trained: Cluster) -> None:
    told = Told()
    pids = [rank.pid for rank in trained.info.ranks]
    trained.execute("treasure = rank + 5")
    code = "mx.eval(mx.distributed.sum_scatter(mx.ones((4,)), group=group))"
    errors = trained.execute(code, tell=told, timeout=30).errors
    assert all("sum_scatter" in error["evalue"] for error in errors.values()) and len(errors) == 2
    assert [rank.pid for rank in trained.info.ranks] == pids, str(told)
    assert trained.pull("treasure") == {0: 5, 1: 6}
