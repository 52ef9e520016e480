"""Auto mode: which cells run on the ranks and which stay, and that each runs once."""

import pytest
from fake_cluster import magics

from mlxbench_kernel.kernel.auto import stays_here


@pytest.fixture
def auto(shell, up, capsys):
    shell.run_cell("%mlx_dist auto on")
    capsys.readouterr()
    return shell


def sent(shell):
    """What the ranks were given, in order."""
    return [call[1] for call in magics(shell).cluster.calls if call[0] == "execute"]


def test_auto_mode_sends_every_following_cell_once(auto, up, capsys):
    auto.run_cell("x = rank * 10")
    auto.run_cell("print('on', rank)\nx + 1")
    assert sent(auto) == ["x = rank * 10\n", "print('on', rank)\nx + 1\n"]
    assert [names["x"] for names in up.names] == [0, 10]
    assert "x" not in auto.user_ns
    assert "on 1" in capsys.readouterr().out


def test_a_cell_that_awaits_runs_once_on_the_ranks(auto, up):
    auto.run_cell("import asyncio\nruns = globals().get('runs', 0) + 1\nawait asyncio.sleep(0)")
    auto.run_cell("after = 1")
    assert [names["runs"] for names in up.names] == [1, 1]
    assert len(sent(auto)) == 2


def test_each_cell_says_where_it_runs_also_when_it_prints_nothing(auto, capsys):
    auto.run_cell("x = 1")
    assert capsys.readouterr().out == "▸ ranks 0-1\n"


def test_magics_of_the_cell_go_along(auto):
    auto.run_cell("%%timeit\n1 + 1")
    auto.run_cell("x?")
    auto.run_cell("!ls")
    assert sent(auto) == ["%%timeit\n1 + 1\n", "x?\n", "!ls\n"]


def test_local_cells_run_here(auto):
    auto.run_cell("\n# a picture\n%%local\nhere = 1\nhere + 1")
    assert auto.user_ns["here"] == 1
    assert auto.user_ns["_"] == 2
    assert sent(auto) == []


def test_a_local_cell_may_await_and_use_magics(auto, capsys):
    auto.run_cell("%%local\nimport asyncio\nawait asyncio.sleep(0)\ndone = True")
    auto.run_cell("%%local\nimport math\n%timeit -n1 -r1 math.sqrt(2)")
    auto.run_cell("%%local\n%%capture caught\nprint('quiet')")
    assert auto.user_ns["done"]
    assert auto.user_ns["caught"].stdout == "quiet\n"
    assert "1 run, 1 loop" in capsys.readouterr().out
    assert sent(auto) == []


def test_an_error_in_a_local_cell_names_the_line_as_typed(auto, capsys):
    result = auto.run_cell("%%local\nfine = 1\n1 / 0")
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert result.error_in_exec.__traceback__.tb_next.tb_lineno == 3


def test_cells_that_local_code_runs_stay_here(auto):
    auto.run_cell("%%local\nget_ipython().run_cell('inner = 1')\nget_ipython().run_cell('')")
    assert auto.user_ns["inner"] == 1
    auto.run_cell("outer = 1")
    assert sent(auto) == ["outer = 1\n"]


def test_magics_of_the_bench_run_here(auto, up):
    up.names[0]["loss"] = up.names[1]["loss"] = 0.5
    auto.run_cell("# fetch\n%mlx_dist pull loss --ranks 0\ntwice = 2 * loss")
    assert auto.user_ns["twice"] == 1.0
    auto.run_cell("# only there\n%%mlx_dist --ranks 1\nalone = 1")
    assert "alone" in up.names[1]
    assert "alone" not in up.names[0]
    assert sent(auto) == ["alone = 1\n"]


def test_auto_off_brings_the_cells_back(auto):
    auto.run_cell("%mlx_dist auto off")
    auto.run_cell("here = 1")
    assert auto.user_ns["here"] == 1


def test_local_works_without_auto_mode(shell):
    shell.run_cell("%%local\nhere = 1")
    assert shell.user_ns["here"] == 1
    shell.run_cell_magic("local", "", "also = 2")
    assert shell.user_ns["also"] == 2


def test_local_with_something_behind_it_is_an_error_and_goes_nowhere(auto, capsys):
    auto.run_cell("%%local --ranks 0\nx = 1")
    assert "%%local takes nothing after it, not '--ranks 0'" in capsys.readouterr().out
    assert "x" not in auto.user_ns
    assert sent(auto) == []


def test_an_error_on_ranks_is_shown_once_and_fails_the_cell(auto, capsys):
    result = auto.run_cell("1 / 0")
    assert not result.success
    assert capsys.readouterr().out.count("division by zero") == 1


def test_a_blank_cell_does_nothing(auto):
    for cell in ("", "\n\n", "# only a comment"):
        assert auto.run_cell(cell).success
    assert sent(auto) == []


def test_unfinished_input_is_still_seen_as_unfinished(auto):
    assert auto.check_complete("for step in range(3):")[0] == "incomplete"
    assert auto.check_complete("x = 1")[0] == "complete"
    assert auto.check_complete("x = )")[0] == "invalid"
    assert auto.check_complete("%%local\nx = 1")[0] == "incomplete"
    assert sent(auto) == []


def test_inspecting_a_name_asks_nobody(auto):
    auto.user_ns["here"] = 1
    assert auto.object_inspect("here")["found"]
    assert sent(auto) == []


@pytest.mark.parametrize(
    ("cell", "stays"),
    [
        ("x = 1", False),
        ("%%time\nx = 1", False),
        ("%timeit x", False),
        ("mlx_dist = 1", False),
        ("x = 1\n%mlx_dist status", False),
        ("exit_code = 0", False),
        ("exit(0) if done else None", False),
        ("%mlx_dist status\nx = 1", True),
        ("\n  # why\n\n%mlx_mem", True),
        ("%%mlx_dist\nx", True),
        ("%%local\nx", True),
        ("%%locale\nx", False),
        ("exit", True),
        ("quit()\n", True),
        ("# nothing", True),
    ],
)
def test_where_a_cell_runs(cell, stays):
    assert stays_here(cell.splitlines(keepends=True)) is stays
