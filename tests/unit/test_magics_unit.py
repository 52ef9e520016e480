"""A notebook's session with ``%mlx_dist``, on ranks that are namespaces of this process."""

import atexit
import inspect
import os

import pytest
from fake_cluster import FakeCluster, cluster_info, magics
from IPython.core.interactiveshell import InteractiveShell

from mlxbench_kernel.cluster.cluster import Cluster
from mlxbench_kernel.cluster.history import PastCell
from mlxbench_kernel.cluster.state import Options
from mlxbench_kernel.errors import CellError, CellTimeout, ClusterError, UsageError
from mlxbench_kernel.kernel.cells import first_line


def dist(shell, line):
    shell.run_line_magic("mlx_dist", line)


def cell(shell, line, code):
    shell.run_cell_magic("mlx_dist", line, code)


def calls(shell, name):
    return [call for call in magics(shell).cluster.calls if call[0] == name]


# -- up and down -----------------------------------------------------------------


def test_up_shows_the_ranks(shell, capsys):
    dist(shell, "up -n 3 --backend ring --env A=1 --seed 5 --timeout 9 --keep --python py")
    shown = capsys.readouterr().out
    assert "rank  host    pid" in shown
    assert "2     studio  4002" in shown
    assert "cluster mlx-c0ffee" in shown
    assert calls(shell, "up") == [
        (
            "up",
            3,
            {
                "hostfile": None, "backend": "ring", "env": {"A": "1"}, "python": "py",
                "timeout": 9.0, "keep": True, "seed": 5,
            },
        )
    ]  # fmt: skip


def test_up_reads_values_of_the_notebook_once(shell):
    shell.user_ns.update(count=4, text="{count}")
    shell.run_cell("%mlx_dist up -n {count} --env NOTE={text}")
    assert calls(shell, "up")[0][1] == 4
    assert calls(shell, "up")[0][2]["env"] == {"NOTE": "{count}"}


def test_up_twice_says_what_is_running(shell, up):
    with pytest.raises(UsageError, match=r"ranks 0-1 of cluster mlx-c0ffee .*%mlx_dist restart"):
        dist(shell, "up -n 4")
    assert magics(shell).cluster is up


def test_a_failed_up_leaves_nothing_behind(shell, monkeypatch):
    monkeypatch.setattr(FakeCluster, "broken", True)
    with pytest.raises(ClusterError, match="did not come up"):
        dist(shell, "up -n 2")
    monkeypatch.setattr(FakeCluster, "broken", False)
    dist(shell, "up -n 2")


@pytest.mark.parametrize("line", ["restart", "interrupt", "log", "push x", "pull x", "auto on"])
def test_without_ranks_one_line_says_what_to_type(shell, line):
    with pytest.raises(UsageError, match="no ranks are running: type %mlx_dist up -n 2 first"):
        dist(shell, line)


def test_a_cell_without_ranks_says_what_to_type(shell):
    with pytest.raises(UsageError, match="no ranks are running: type %mlx_dist up -n 2 first"):
        cell(shell, "", "1 + 1")


def test_status_and_down_without_ranks_are_no_errors(shell, capsys):
    dist(shell, "status")
    dist(shell, "down")
    out = capsys.readouterr().out
    assert "no ranks are running: type %mlx_dist up -n 2" in out


def test_a_wrong_line_changes_nothing(shell):
    with pytest.raises(UsageError, match="type %mlx_dist up -n 2"):
        dist(shell, "up -n abc")
    assert magics(shell).cluster is None


def test_an_error_is_shown_as_one_line(shell, capsys):
    shell.run_cell("%mlx_dist up -n abc")
    shown = capsys.readouterr().out.strip().splitlines()
    assert len(shown) == 1
    assert "UsageError" in shown[0]


def test_status_says_what_each_rank_does(shell, up, capsys):
    dist(shell, "status")
    assert "busy 3 s · line 2: mx.eval(loss)" in capsys.readouterr().out


def test_a_magic_of_this_notebook_inside_a_cell_for_ranks_is_refused(up, shell):
    with pytest.raises(UsageError, match=r"%mlx_dist in line 2 .* a cell of its own"):
        shell.run_cell_magic("mlx_dist", "", "y = 5\n%mlx_dist status\n")
    assert not [call for call in up.calls if call[0] == "execute"]


def test_restart_interrupt_and_log(shell, up, capsys):
    dist(shell, "restart")
    dist(shell, "interrupt --ranks 1")
    dist(shell, "log --ranks 0 -n 7")
    assert up.calls[1:] == [("restart",), ("interrupt", [1]), ("logs", [0], 7)]
    out = capsys.readouterr().out
    assert "rank 1: interrupted" in out
    assert "── rank 0 on studio ──\nthe log of rank 0\n" in out


def test_after_a_failed_restart_up_is_possible(shell, up, monkeypatch):
    monkeypatch.setattr(FakeCluster, "broken", True)
    with pytest.raises(ClusterError):
        dist(shell, "restart")
    monkeypatch.setattr(FakeCluster, "broken", False)
    dist(shell, "up -n 2")


def test_down_ends_the_ranks_and_auto_mode(shell, up, capsys):
    dist(shell, "auto on")
    dist(shell, "down")
    assert up.calls[-1] == ("down",)
    assert "ranks 0-1 ended" in capsys.readouterr().out
    shell.run_cell("here = 1")
    assert shell.user_ns["here"] == 1


def test_ranks_end_with_the_notebook_unless_kept(shell, up):
    magics(shell).leave()
    assert up.calls[-1] == ("down",)
    kept = magics(shell).cluster = FakeCluster(2, Options(keep=True))
    magics(shell).leave()
    assert kept.calls == []


def test_a_fork_of_the_notebook_does_not_end_the_ranks(shell, up, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    magics(shell).leave()
    assert ("down",) not in up.calls


# -- attach ------------------------------------------------------------------------


def test_attach_finds_the_one_that_was_kept(shell, monkeypatch, capsys):
    kept = cluster_info(3, id="mlx-222222", owner=2**22 + 1)
    monkeypatch.setattr(FakeCluster, "clusters", [kept])
    dist(shell, "attach")
    assert magics(shell).cluster.id == "mlx-222222"
    assert "2     studio" in capsys.readouterr().out


def test_attach_shows_what_the_last_cell_has_put_out(shell, monkeypatch, capsys):
    said = ("stream", {"name": "stdout", "text": "loss 1.5\n"})
    raised = ("error", {"ename": "ValueError", "evalue": "too late", "traceback": ["too late"]})
    past = {
        1: PastCell("train()\n" * 9, 1000.0, True, (said,), 12),
        2: PastCell("train()\n" * 9, 1000.0, False, (said, raised), 0),
    }
    monkeypatch.setattr(FakeCluster, "past", past)
    monkeypatch.setattr(FakeCluster, "clusters", [cluster_info(3, owner=1, owner_started=1.0)])
    dist(shell, "attach")
    shown = capsys.readouterr().out
    assert "to ranks 1-2, still runs on rank 1, the next cell waits for it:" in shown
    assert "    train()\n    train()\n    train()\n    … 6 more lines\n" in shown
    assert "loss 1.5" in shown and "too late" in shown
    assert "(12 characters before are not kept)" in shown


def test_attach_lists_where_there_is_a_choice(shell, monkeypatch, capsys):
    clusters = [cluster_info(2, id=id, owner=2**22 + 1) for id in ("mlx-111111", "mlx-222222")]
    monkeypatch.setattr(FakeCluster, "clusters", clusters)
    dist(shell, "attach")
    assert magics(shell).cluster is None
    assert "type %mlx_dist attach mlx-111111" in capsys.readouterr().out
    dist(shell, "attach mlx-222222")
    assert magics(shell).cluster.id == "mlx-222222"


def test_attach_beside_running_ranks_lists_but_takes_nothing(shell, up, monkeypatch, capsys):
    kept = cluster_info(3, id="mlx-222222", owner=2**22 + 1)
    monkeypatch.setattr(FakeCluster, "clusters", [kept])
    dist(shell, "attach")
    assert "mlx-222222" in capsys.readouterr().out
    with pytest.raises(UsageError, match="running already"):
        dist(shell, "attach mlx-222222")
    assert magics(shell).cluster is up


def test_attach_without_any_cluster_says_so(shell, capsys):
    dist(shell, "attach")
    assert "no cluster is running: type %mlx_dist up -n 2" in capsys.readouterr().out


# -- data --------------------------------------------------------------------------


def test_push_sends_names_to_ranks(shell, up, capsys):
    shell.user_ns.update(lr=0.1, batch=[1, 2])
    dist(shell, "push lr batch --ranks 1")
    assert up.names[1]["lr"] == 0.1
    assert up.names[1]["batch"] == [1, 2]
    assert "lr" not in up.names[0]
    assert "lr, batch → rank 1" in capsys.readouterr().out


def test_push_of_an_unknown_name_sends_nothing(shell, up):
    shell.user_ns.update(lr=0.1, learning_rate=0.2)
    with pytest.raises(UsageError, match=r"'learning_rat' in this notebook, .* learning_rate"):
        dist(shell, "push lr learning_rat")
    assert "lr" not in up.names[0]


def test_pull_from_one_rank_binds_the_value(shell, up, capsys):
    dist(shell, "pull rank --ranks 1")
    assert shell.user_ns["rank"] == 1
    assert "rank ← rank 1\n" in capsys.readouterr().out


def test_pull_from_several_ranks_binds_a_dictionary(shell, up, capsys):
    dist(shell, "pull rank size")
    assert shell.user_ns["rank"] == {0: 0, 1: 1}
    assert shell.user_ns["size"] == {0: 2, 1: 2}
    assert "rank ← ranks 0-1, a dictionary by rank" in capsys.readouterr().out


def test_pull_from_a_cluster_of_one_binds_the_value(shell):
    dist(shell, "up -n 1")
    dist(shell, "pull size --as world")
    assert shell.user_ns["world"] == 1
    assert "size" not in shell.user_ns


def test_pull_binds_nothing_unless_all_arrived(shell, up):
    up.names[0]["loss"] = 1.0
    with pytest.raises(UsageError, match="rank 1 has no variable 'loss'"):
        dist(shell, "pull size loss")
    assert "size" not in shell.user_ns
    assert "loss" not in shell.user_ns


@pytest.mark.parametrize("line", ["pull size --ranks 0,9", "interrupt --ranks 9", "log --ranks 9"])
def test_ranks_out_of_range_say_how_many_there_are(shell, up, line):
    with pytest.raises(UsageError, match=r"no rank 9, ranks 0-1 are running"):
        dist(shell, line)
    assert len(up.calls) == 1


# -- cells -------------------------------------------------------------------------


def test_a_cell_runs_on_the_ranks_it_names(shell, up, capsys):
    cell(shell, "--ranks 1 --timeout 5", "print('hello from', rank)")
    assert calls(shell, "execute") == [("execute", "print('hello from', rank)", [1], 5.0)]
    assert "hello from 1" in capsys.readouterr().out


def test_out_keeps_the_results_by_rank(shell, up):
    cell(shell, "--out results", "rank * 10")
    assert shell.user_ns["results"] == {0: 0, 1: 10}


def test_an_error_on_ranks_is_one_exception_here(shell, up):
    with pytest.raises(CellError):
        cell(shell, "--out results", "1 / 0")
    assert "results" not in shell.user_ns


def test_a_traceback_counts_the_lines_of_the_cell_as_typed():
    body = "a = 1\n  \nboom()\n"
    assert first_line(body, "%%mlx_dist --ranks 0\n" + body) == 2
    assert first_line(body, "\n\n# why\n%%mlx_dist\n" + body.rstrip()) == 5
    assert first_line(body, body) == 1  # auto mode
    assert first_line(body, "run_it_from_code()") == 1


def test_waiting_given_up_says_who_is_busy(shell, up, monkeypatch):
    monkeypatch.setattr(up, "raises", CellTimeout("no end after 5 s: rank 1 is busy"))
    with pytest.raises(CellTimeout, match="rank 1 is busy"):
        cell(shell, "--timeout 5", "rank")


@pytest.mark.parametrize("given_up", [CellTimeout("no end after 5 s"), KeyboardInterrupt()])
def test_waiting_given_up_shows_why_the_others_wait(shell, up, monkeypatch, given_up, capsys):
    monkeypatch.setattr(up, "raises", given_up)
    with pytest.raises(CellError, match="ZeroDivisionError"):
        cell(shell, "--timeout 5", "1 / (1 - rank)")
    assert (str(given_up) or "interrupted") in capsys.readouterr().err


def test_a_cell_on_ranks_out_of_range_runs_nowhere(shell, up):
    with pytest.raises(UsageError, match="no rank 9"):
        cell(shell, "--ranks 0,9", "x = 1")
    assert calls(shell, "execute") == []


# -- the extension -----------------------------------------------------------------


def test_reload_keeps_the_ranks_and_doubles_nothing(shell, up):
    before = len(shell.input_transformers_cleanup), len(shell.Completer.custom_matchers)
    shell.run_cell("%reload_ext mlxbench_kernel")
    shell.run_cell("%load_ext mlxbench_kernel")
    assert magics(shell).cluster is up
    after = len(shell.input_transformers_cleanup), len(shell.Completer.custom_matchers)
    assert after == before
    dist(shell, "auto on")
    shell.run_cell("x = rank")
    assert len(calls(shell, "execute")) == 1


def test_unload_takes_everything_out(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()
    seen = []
    monkeypatch.setattr(atexit, "register", lambda function: seen.append(function))
    monkeypatch.setattr(atexit, "unregister", lambda function: seen.remove(function))

    def state():
        return (
            list(shell.input_transformers_cleanup),
            list(shell.Completer.custom_matchers),
            {kind: set(table) for kind, table in shell.magics_manager.magics.items()},
            set(shell.magics_manager.registry),
            {name: list(callbacks) for name, callbacks in shell.events.callbacks.items()},
            list(seen),
        )

    before = state()
    shell.extension_manager.load_extension("mlxbench_kernel")
    assert state() != before
    shell.extension_manager.unload_extension("mlxbench_kernel")
    assert state() == before
    shell.history_manager.end_session()


def test_help_is_there_for_the_question_mark(shell, capsys):
    shell.run_cell("%mlx_dist?")
    shown = capsys.readouterr().out
    assert "%%mlx_dist [--ranks 0,2-3]" in shown
    shell.run_cell("%mlx_dist")
    assert "%mlx_dist pull" in capsys.readouterr().out


def test_the_fake_answers_like_the_real_cluster():
    """What the magics call exists on the real `Cluster`, with these names of arguments."""
    for name in (
        "up", "attach", "running", "status", "restart", "interrupt", "down", "logs", "push",
        "pull", "complete", "execute",
    ):  # fmt: skip
        fake = inspect.signature(getattr(FakeCluster, name)).parameters
        real = inspect.signature(getattr(Cluster, name)).parameters
        assert set(fake) - {"arguments"} <= set(real), name
