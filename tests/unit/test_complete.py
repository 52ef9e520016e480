"""The Tab key on lines of ``%mlx_dist`` and in code that will run on the ranks."""

from types import SimpleNamespace

import pytest
from fake_cluster import FakeCluster, cluster_info
from IPython.core.completer import provisionalcompleter


def complete(shell, text):
    """What Tab offers at the end of the text, as a front-end asks: replacement and start."""
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    assert len({each.start for each in found}) <= 1
    return [text[: each.start] + each.text for each in found]


def asked(cluster):
    return [call[1:] for call in cluster.calls if call[0] == "complete"]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("%mlx_dist st", ["%mlx_dist status"]),
        ("%mlx_dist up --ba", ["%mlx_dist up --backend"]),
        ("%mlx_dist up -n 2 --backend ja", [
            "%mlx_dist up -n 2 --backend jaccl", "%mlx_dist up -n 2 --backend jaccl-ring",
        ]),
        ("%mlx_dist up --backend=nc", ["%mlx_dist up --backend=nccl"]),
        ("%mlx_dist auto o", ["%mlx_dist auto off", "%mlx_dist auto on"]),
        ("%mlx_dist auto ", ["%mlx_dist auto off", "%mlx_dist auto on"]),
        ("%mlx_dist interrupt --ranks ", [
            "%mlx_dist interrupt --ranks 0", "%mlx_dist interrupt --ranks 1",
        ]),
        ("%mlx_dist push learn", ["%mlx_dist push learning_rate"]),
        ("%mlx_dist pull lo", ["%mlx_dist pull loss", "%mlx_dist pull loss_history"]),
        ("%mlx_dist pull le", []),  # a builtin is no variable
        ("%mlx_dist attach mlx-2", ["%mlx_dist attach mlx-222222"]),
        ("%%mlx_dist --ti", ["%%mlx_dist --timeout"]),
        ("x = 1\n%mlx_dist st", ["x = 1\n%mlx_dist status"]),
        ("mlx_dist st", ["mlx_dist status"]),  # IPython's automagic
        ("%mlx_mem st", ["%mlx_mem status"]),
        ("%mlx_mem limit ca", ["%mlx_mem limit cache="]),
        ("%mlx_mem fit Llama mo", ["%mlx_mem fit Llama mode="]),
        ("%mlx_mem reset-peak --ranks ", [
            "%mlx_mem reset-peak --ranks 0", "%mlx_mem reset-peak --ranks 1",
        ]),
    ],
)  # fmt: skip
def test_tab_on_a_line_of_the_magic(shell, up, monkeypatch, text, offered):
    monkeypatch.setattr(FakeCluster, "clusters", [cluster_info(id="mlx-222222")])
    shell.user_ns.update(learning_rate=0.1, _learned=1)
    assert complete(shell, text) == offered


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("%mlx_graph learn", ["%mlx_graph learning_rate"]),
        ("%mlx_graph step(learn", ["%mlx_graph step(learning_rate"]),
        ("%mlx_graph model.lay", ["%mlx_graph model.layers"]),
        ("%mlx_graph loss --pro", ["%mlx_graph loss --profile"]),
        ("%mlx_graph loss --ranks ", [
            "%mlx_graph loss --ranks 0", "%mlx_graph loss --ranks 1", "%mlx_graph loss --ranks all",
        ]),
    ],
)  # fmt: skip
def test_tab_on_a_line_of_the_graph(shell, up, text, offered):
    shell.user_ns.update(learning_rate=0.1, model=SimpleNamespace(layers=[]))
    assert complete(shell, text) == offered


def test_tab_after_a_subcommand_offers_its_options(shell):
    offered = complete(shell, "%mlx_dist log ")
    assert offered == ["%mlx_dist log --help", "%mlx_dist log --ranks", "%mlx_dist log -n"]


def test_tab_finds_hostfiles(shell, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.json").touch()
    (tmp_path / "hosts.txt").touch()
    (tmp_path / "hostfiles").mkdir()
    (tmp_path / "hostfiles" / "ring.json").touch()
    start = "%mlx_dist up --hostfile "
    assert complete(shell, f"{start}ho") == [f"{start}hostfiles/", f"{start}hosts.json"]
    assert complete(shell, f"{start}hostfiles/r") == [f"{start}hostfiles/ring.json"]
    assert complete(shell, f"{start}nowhere/x") == []


def test_names_in_a_cell_for_ranks_come_from_the_ranks(shell, up):
    shell.user_ns["loss_here"] = 1
    text = "%%mlx_dist --ranks 0\nx = 1\nx + lo"
    assert complete(shell, text) == [
        "%%mlx_dist --ranks 0\nx = 1\nx + loss",
        "%%mlx_dist --ranks 0\nx = 1\nx + loss_history",
    ]
    assert asked(up) == [("x = 1\nx + lo", 12)]


def test_in_auto_mode_names_come_from_the_ranks_and_in_local_cells_from_here(shell, up):
    shell.run_cell("%mlx_dist auto on")
    shell.user_ns["loss_here"] = 1
    assert complete(shell, "x = 1\nlo") == ["x = 1\nloss", "x = 1\nloss_history"]
    assert "%%local\nloss_here" in complete(shell, "%%local\nloss_")
    assert len(asked(up)) == 1


def test_a_front_end_that_asks_for_one_line_gets_the_same(shell, up):
    assert shell.complete("", "%mlx_dist res", 13) == ("res", ["restart"])
    shell.run_cell("%mlx_dist auto on")
    assert shell.complete("", "y = lo", 6) == ("lo", ["loss", "loss_history"])


def test_without_ranks_completion_is_ipythons(shell):
    shell.user_ns["loss_here"] = 1
    assert "loss_here" in complete(shell, "loss_h")
    assert complete(shell, "%%mlx_dist\nloss_h") == ["%%mlx_dist\nloss_here"]


def test_tab_in_ordinary_cells_asks_no_rank(shell, up):
    complete(shell, "lo")
    assert asked(up) == []
