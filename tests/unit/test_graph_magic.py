"""``%mlx_graph`` in a notebook's own kernel."""

import re

import mlx.core as mx
import mlx.nn as nn
import pytest
from IPython.utils.capture import capture_output

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import capture, diff, profile
from mlxbench_kernel.kernel import graph_magics
from mlxbench_kernel.kernel.command import Help
from mlxbench_kernel.kernel.graph_magics import read_graph_line

VIEW = "application/vnd.jupyter.widget-view+json"
PICTURE = "image/svg+xml"


@pytest.fixture
def model(shell):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = mx.ones((3, 4))
    mx.eval(model.parameters(), x)
    shell.user_ns.update(mx=mx, model=model, x=x)
    return model


def shown(shell, line):
    """What stands under a cell with that line: text, and what was displayed.

    A view and the picture that stands in for it are one thing here.
    """
    with capture_output() as captured:
        shell.run_line_magic("mlx_graph", line)
    return captured.stdout, joined(captured.outputs)


def joined(outputs):
    together = []
    for output in outputs:
        if PICTURE in output.data:
            assert not set(output.data) & set(together[-1])
            together[-1] |= output.data
        else:
            together.append(dict(output.data))
    return together


def test_a_call_is_shown_and_not_made(shell, model):
    text, (data,) = shown(shell, "model(x)")
    assert text == "" and VIEW in data
    assert re.match(r"model\(x\)\n\d+ operations, \d+ inputs", data["text/plain"])
    assert "Linear" in data["image/svg+xml"]


def test_lazy_arrays_are_shown_and_stay_lazy(shell, model):
    shell.run_cell("loss = (x * 2).sum()")
    _, (data,) = shown(shell, "mx.sin(x)")
    assert "\n1 operation, 1 inputs and constants" in data["text/plain"]
    _, (data,) = shown(shell, "loss")
    assert "Sum" in data["image/svg+xml"] and "loss" in data["text/plain"]
    assert capture(shell.user_ns["loss"]).nodes > 1  # still not evaluated


def test_a_profile_says_what_it_measures(shell, model):
    text, (data,) = shown(shell, "model(x) --profile")
    assert "operations evaluated apart" in text and "AddMM" in text
    assert VIEW in data


def test_traces_are_told_with_the_lines_of_cells(shell, model, capsys):
    shell.run_cell("import mlx.core as mx\ntwice = mx.compile(lambda x: x * 2)", store_history=True)
    shell.run_cell("for n in (3, 4, 5, 5, 6):\n    twice(mx.ones(n))", store_history=True)
    said = capsys.readouterr().out
    assert "was traced again 3 times in this cell, last at Cell In[2], line 2" in said
    assert "(5,) → (6,)" in said
    _, (data,) = shown(shell, "twice --traces")
    assert data["text/plain"].count("In[2], line 2") == 4 and "<table" in data["text/html"]
    shell.run_cell("twice(mx.ones(7))", store_history=True)  # once is no news
    assert "traced" not in capsys.readouterr().out


def test_traces_of_what_was_compiled_before_are_refused(shell, model):
    shell.user_ns["early"] = mx.compile(lambda x: x)
    with pytest.raises(UsageError, match=r"compiled while no watch was on"):
        shown(shell, "early --traces")
    with pytest.raises(UsageError, match="is not compiled"):
        shown(shell, "model --traces")


def test_the_watch_ends_with_the_extension(shell):
    shell.run_cell("import mlx.core as mx")
    watched = mx.compile
    shell.extension_manager.unload_extension("mlxbench_kernel")
    assert mx.compile is not watched
    shell.extension_manager.load_extension("mlxbench_kernel")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "an expression is missing"),
        ("loss --rank 1", "--rank"),
        ("--profile model(x)", "the expression stands before the options"),
        ("loss --ranks one", "--ranks"),
        ("model(x", "is no expression"),
        ("x", "nothing lazy"),
        ("model(x) --ranks 0", "no ranks are running"),
    ],
)
def test_bad_lines_are_said_in_one_line(shell, model, line, said):
    with pytest.raises(UsageError, match="(?i)" + said) as raised:
        shown(shell, line)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_pythons_error(shell, model, capsys):
    with pytest.raises(NameError, match="no_such"):
        shown(shell, "no_such(x)")
    shell.run_cell("%mlx_graph no_such --traces")
    said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "NameError: name 'no_such' is not defined" in said and "mlxbench_kernel" not in said


def test_what_a_call_raises_is_shown_with_the_lines_of_the_user_only(shell, model, capsys):
    shell.run_cell("def broken(x):\n    y = 2 * x\n    return y + missing")
    shell.run_cell("%mlx_graph broken(x)")
    said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "NameError: name 'missing' is not defined" in said and "return y + missing" in said
    assert "1 broken(x)" in said and "mlxbench_kernel" not in said and "IPython" not in said


def test_an_endless_recursion_shows_the_lines_of_the_user_only(shell, model, capsys):
    shell.run_cell("def deep(x):\n    return deep(mx.sin(x))")
    shell.run_cell("%mlx_graph deep(x)")
    said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "RecursionError" in said and "return deep(mx.sin(x))" in said
    assert "mlxbench_kernel" not in said


def test_an_interrupted_call_shows_where_it_was(shell, model, capsys):
    shell.run_cell("def hangs(x):\n    import signal\n    signal.raise_signal(signal.SIGINT)")
    shell.run_cell("%mlx_graph hangs(x)")
    said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "KeyboardInterrupt" in said and "raise_signal" in said and "1 hangs(x)" in said
    assert "mlxbench_kernel" not in said


def test_a_graph_that_takes_long_to_open_says_so(shell, model, monkeypatch):
    told = []
    monkeypatch.setattr(
        "mlxbench_kernel.widgets.ProgressBar.__call__", lambda _, *at: told.append(at)
    )
    shown(shell, "model(x)")
    assert told == []
    monkeypatch.setattr(graph_magics, "MANY_NODES", 3)
    _, (data,) = shown(shell, "model(x)")
    assert re.fullmatch(r"opening \d+ nodes", told[-1][1]) and VIEW in data


def test_a_call_of_an_expression_that_reads_is_said_with_its_text(shell, model):
    with pytest.raises(UsageError, match=r"^%mlx_graph mx.sum\(x\).item\(\) reads a value"):
        shown(shell, "mx.sum(x).item()")


def test_a_read_in_a_library_is_said_with_the_expression_and_the_line_there(shell, model):
    shell.run_cell("import mlx_lm")
    library = "def reads(x):\n    return x * x.sum().item()"
    file = shell.user_ns["mlx_lm"].__path__[0] + "/reading.py"
    exec(compile(library, file, "exec"), shell.user_ns)
    with pytest.raises(UsageError, match=r"^%mlx_graph reads\(x\), in mlx_lm/reading.py:2, reads "):
        shown(shell, "reads(x)")


def test_options_follow_the_expression():
    command = read_graph_line("f(a --b, n=-1) --ranks 0,2 --profile")
    assert (command.expression, command.ranks, command.profile) == ("f(a --b, n=-1)", "0,2", True)
    said = read_graph_line("--help")
    assert isinstance(said, Help) and "Nothing\nis evaluated" in said.text


def test_graphs_as_the_last_line_of_a_cell_are_views(shell, model):
    graph = capture(model, shell.user_ns["x"])
    assert repr(diff(graph, graph)) == "<GraphDiff: equal>"
    for value in (graph, diff(graph, graph), profile([model(shell.user_ns["x"])], repeat=1)):
        with capture_output() as captured:
            shell.displayhook(value)
        (data,) = joined(captured.outputs)
        assert VIEW in data and data[PICTURE].startswith("<svg")
    shell.extension_manager.unload_extension("mlxbench_kernel")
    assert VIEW not in shell.display_formatter.format(graph)[0]
    shell.extension_manager.load_extension("mlxbench_kernel")
