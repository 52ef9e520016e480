"""Hosts for the tests; see `machines`."""

from __future__ import annotations

from collections.abc import Iterator

import machines
import pytest

from mlxbench_kernel.cluster import Cluster


@pytest.fixture(scope="session")
def _one_sshd() -> Iterator[machines.Sshd]:
    with machines.one_sshd() as sshd:
        yield sshd


@pytest.fixture
def sshd(_one_sshd: machines.Sshd, monkeypatch: pytest.MonkeyPatch) -> machines.Sshd:
    """One sshd on this machine, with names that reach it and names that fail."""
    monkeypatch.setenv("PATH", _one_sshd.path)
    return _one_sshd


@pytest.fixture(scope="session")
def _three_hosts() -> Iterator[machines.Network]:
    with machines.network(3) as network:
        yield network


@pytest.fixture
def namespaces(
    _three_hosts: machines.Network, monkeypatch: pytest.MonkeyPatch
) -> Iterator[machines.Network]:
    """Three hosts with addresses of their own on one switch; cables are mended afterwards."""
    monkeypatch.setenv("PATH", _three_hosts.path)
    yield _three_hosts
    for machine in _three_hosts.machines:
        _three_hosts.mend(machine)


@pytest.fixture(scope="module")
def ranks_on_hosts(
    _three_hosts: machines.Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A rank on each of the three hosts, shared by the tests of a module that leave them well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", _three_hosts.path)
        cluster = Cluster.up(hostfile=_three_hosts.hostfile(tmp_path_factory.mktemp("hosts")))
        try:
            yield cluster
        finally:
            left = cluster.down()
        assert left == []
