"""Hosts are made ready: private folders, and the modules that lie beside the notebook."""

from __future__ import annotations

from pathlib import Path

import machines
import pytest

from mlxbench_kernel.cluster import hosts
from mlxbench_kernel.cluster.hostfile import Host
from mlxbench_kernel.errors import ClusterError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A notebook's folder with a module and a package beside it."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    (folder / "helpers.py").write_text("width = 64\n")
    (folder / "models" / "__init__.py").write_text("")
    (folder / "models" / "vision.py").write_text("x = 1\n")
    return folder


def test_modules_lie_on_every_host_and_the_user_reads_what_was_copied(
    sshd: machines.Sshd, project: Path
) -> None:
    ranks = [Host("mac-a"), Host("127.0.0.1"), Host("mac-b"), Host("mac-a")]
    reports = hosts.probe(ranks, None, 20.0)
    plans = [hosts.plan(reports[host.ssh], "mlx-1", rank) for rank, host in enumerate(ranks)]
    plans[3]["environment"]["PYTHONPATH"] = "/opt/mine"
    notes = hosts.prepare(reports, plans, str(project))
    told = "helpers.py, models/ (3 files, 17 B)"
    assert notes == [f"copied to mac-a: {told}", f"copied to mac-b: {told}"]
    run = sshd.home / ".cache" / "mlxbench" / "run" / "mlx-1"
    assert (run / "modules" / "models" / "vision.py").read_text() == "x = 1\n"
    assert run.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in run.glob("rank-*")} == {"rank-0", "rank-2", "rank-3"}
    assert plans[0]["environment"] == {"PYTHONPATH": f"{run}/modules"}
    assert plans[1]["environment"] == {}
    assert plans[3]["environment"] == {"PYTHONPATH": f"{run}/modules:/opt/mine"}

    assert hosts.clean([plan for plan in plans if plan["ssh"] != "127.0.0.1"]) == []
    assert not run.exists()


def test_without_modules_nothing_is_said(sshd: machines.Sshd, tmp_path: Path) -> None:
    reports = hosts.probe([Host("mac-a")], None, 20.0)
    plans = [hosts.plan(reports["mac-a"], "mlx-2", 0)]
    assert hosts.prepare(reports, plans, str(tmp_path)) == []
    assert Path(plans[0]["folder"]).is_dir()
    assert hosts.clean(plans) == []


def test_a_host_that_is_lost_meanwhile_is_named(sshd: machines.Sshd, project: Path) -> None:
    reports = hosts.probe([Host("mac-a")], None, 20.0)
    plans = [hosts.plan(reports["mac-a"], "mlx-3", 0)]
    text = sshd.config.read_text()
    sshd.config.write_text(text.replace("HostName 127.0.0.1", "HostName no..where"))
    try:
        with pytest.raises(ClusterError, match=r"mac-a is not a name .*\(while modules"):
            hosts.prepare(reports, plans, str(project))
    finally:
        sshd.config.write_text(text)
