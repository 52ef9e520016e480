"""Real ranks for the tests: two of them, shared by the tests of a module that leave them well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from running import processes

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.kernel.extension import load_ipython_extension, unload_ipython_extension


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    """An IPython with two ranks, as a notebook has it."""
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    load_ipython_extension(shell)
    shell.run_line_magic("mlx_dist", "up -n 2 --seed 1")
    yield shell
    shell.run_line_magic("mlx_dist", "down")
    unload_ipython_extension(shell)
    InteractiveShell.clear_instance()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Cluster]:
    before = processes()
    cluster = Cluster.up(2, seed=7)
    yield cluster
    cluster.down()
    assert processes() <= before
    assert not cluster.info.home.exists()
