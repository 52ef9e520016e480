"""An IPython shell with the extension, whose clusters are fake."""

import gc

import mlx.core as mx
import pytest
from fake_cluster import FakeCluster, magics
from IPython.core.interactiveshell import InteractiveShell
from needs import require

from mlxbench_kernel import native
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.stepper import current, let_go


@pytest.fixture
def counted():
    """What arrays take is what is asked for: nothing old is left, nor larger buffers of it."""
    require(native.load() is not None, f"no native module: {native.reason()}")
    PROTECTION.trees.clear()
    PROTECTION.kept.clear()
    if (stepper := current()) is not None:
        let_go(stepper)
        del stepper
    gc.collect()
    mx.clear_cache()


@pytest.fixture
def shell(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr("mlxbench_kernel.cluster.Cluster", FakeCluster)
    monkeypatch.setattr(FakeCluster, "clusters", [])
    monkeypatch.setattr(FakeCluster, "broken", False)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.extension_manager.load_extension("mlxbench_kernel")
    yield shell
    magics(shell).cluster = None
    shell.extension_manager.unload_extension("mlxbench_kernel")
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


@pytest.fixture
def up(shell):
    """The cluster, after ``%mlx_dist up -n 2``."""
    shell.run_line_magic("mlx_dist", "up -n 2")
    return magics(shell).cluster


@pytest.fixture
def nothing_protected():
    """Afterwards nothing is protected in this process, and ``mx.eval`` is MLX's own."""
    yield
    PROTECTION.trees.clear()
    PROTECTION.kept.clear()
    mx.eval, PROTECTION._watching = PROTECTION._evaluate, False
