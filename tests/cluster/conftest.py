"""Real ranks for the tests: two of them, shared by the tests of a module that leave them well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import processes

from mlxbench_kernel.cluster import Cluster


@pytest.fixture(scope="module")
def ranks() -> Iterator[Cluster]:
    before = processes()
    cluster = Cluster.up(2, seed=7)
    yield cluster
    cluster.down()
    assert processes() <= before
    assert not cluster.info.home.exists()
