"""``%mlx_step`` with two ranks."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from ipywidgets.widgets.widget import _instances
from running import until

from mlxbench_kernel.errors import GivenUp, UsageError
from mlxbench_kernel.remote.stepping import Stepping
from mlxbench_kernel.widgets.graph_view import GraphView

SETUP = """
from mlxbench_kernel import Stepper
mx.random.seed(3)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
X, Y = mx.random.normal((500, 8, 8)), mx.random.randint(0, 3, (500, 8))
stepper = Stepper(
    model, optim.Adam(1e-2),
    lambda model, x, y: nn.losses.cross_entropy(model(x), y).mean(),
    lambda n: (X[n % 500], Y[n % 500]),
)
"""


HANGING = """
import time
hangs = [True]
def batch(n):
    if n >= 5 and rank == 1 and hangs[0]:
        time.sleep(1000)
    return X[n % 500], Y[n % 500]
stepper = Stepper(
    model, optim.Adam(1e-2),
    lambda model, x, y: nn.losses.cross_entropy(model(x), y).mean(), batch,
)
"""


@pytest.fixture(autouse=True)
def made(shell: InteractiveShell) -> None:
    shell.run_cell_magic("mlx_dist", "", SETUP)


def said(shell: InteractiveShell, line: str) -> str:
    with capture_output() as captured:
        shell.run_line_magic("mlx_step", line)
    return captured.stdout.strip()


def test_steps_forwards_and_back(shell: InteractiveShell) -> None:
    assert said(shell, "20").startswith("step 20 · branch main · paused · loss ")
    assert said(shell, "back").startswith("step 19 ")
    assert said(shell, "back 9").startswith("step 10 ")
    assert said(shell, "to 15").startswith("step 15 ")
    assert "step 25: step == 25 holds" in said(shell, "until step == 25")
    assert said(shell, "reset").startswith("step 0 ")


def test_play_leaves_the_notebook_free(shell: InteractiveShell) -> None:
    assert "playing" in said(shell, "play")
    with capture_output() as captured:
        shell.run_cell_magic("mlx_dist", "", "print(stepper.step > 0)")
    assert "True" in captured.stdout
    assert "paused after step" in said(shell, "pause")


def test_branches_and_settings(shell: InteractiveShell, tmp_path: Path) -> None:
    said(shell, "10")
    assert "branch warm" in said(shell, "branch warm at 6")
    said(shell, "set learning_rate=0.1 eps=1e-7")
    said(shell, "freeze layers.0")
    said(shell, "4")
    assert "switch" not in said(shell, "switch main")
    with capture_output() as captured:
        shell.run_line_magic("mlx_step", "compare main warm")
    assert "layers.2.weight" in captured.outputs[0].data["text/plain"]
    said(shell, "switch warm")
    script = said(shell, "script")
    assert "stepper.run(6)" in script and "'learning_rate': 0.1" in script
    assert "stepper.freeze('layers.0')" in script
    assert said(shell, f"script {tmp_path / 'replay.py'}").startswith("written to")
    assert (tmp_path / "replay.py").read_text().strip() == script
    said(shell, f"save {tmp_path / 'run'}")
    assert (tmp_path / "run" / "model.safetensors").exists()
    said(shell, "switch main")
    assert "of 1.07 GB" in said(shell, "budget 1GiB"), "GiB is not GB, here as everywhere"
    assert "of 2.00 GB" in said(shell, "budget 2GB")
    said(shell, "delete warm")
    assert said(shell, f"load {tmp_path / 'run'}").startswith("step 10 ")


def test_the_graph_is_opened_where_nan_begins(shell: InteractiveShell) -> None:
    shell.run_cell_magic(
        "mlx_dist",
        "",
        """
def planted(model, x, y):
    x = mx.abs(x)
    x = mx.where(mx.array(rank == 1) & (y[0] == 7), -x, x)
    return nn.losses.cross_entropy(model(mx.log(x)), y % 3).mean()

Y[8] = 7  # the batch of step 9, whose logarithms are NaN on rank 1 alone
stepper = Stepper(model, optim.Adam(1e-2), planted, lambda n: (X[n], Y[n]), compile=True)
        """,
    )
    text = said(shell, "20")
    assert "step 9: loss is nan; it begins with rank 1: Log" in text
    assert "%mlx_step graph opens the graph there" in text
    state = (
        "print([x.sum().item() for _, x in __import__('mlx.utils').utils.tree_flatten(model)], "
        "mx.random.state[0].tolist(), stepper.step, stepper.said, len(stepper.journal))"
    )
    told = []
    for _ in range(2):
        with capture_output() as captured:
            shell.run_cell_magic("mlx_dist", "", state)
        told.append(captured.stdout)
        with capture_output() as captured:
            shell.run_line_magic("mlx_step", "graph")
    assert told[0] == told[1]
    assert captured.stdout.startswith("it begins with rank 1: Log")
    view = next(each for each in reversed(_instances.values()) if isinstance(each, GraphView))
    assert view.title in captured.outputs[0].data["text/plain"]
    graph = view.source.graph
    assert view.focus is not None
    assert graph.primitives[graph.primitive[view.focus]] == "Log"
    assert "step 9, rank 1 alone" in view.summary
    view.close()
    assert said(shell, "back 3").startswith("step 6 ")
    with capture_output() as captured:
        shell.run_line_magic("mlx_step", "graph")
    assert "everything is finite" in captured.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bakc 3", "there is no 'bakc'; did you mean back"),
        ("run 6", "there is no 'run': type %mlx_step 6"),
        ("step", "there is no 'step': type %mlx_step 1"),
        ("run until loss < 0.1", "there is no 'run': type %mlx_step until loss < 0.1"),
        ("back three", "back takes a whole number, not 'three'"),
        ("to", "to takes N: type %mlx_step to 40"),
        ("5 6", "5 takes nothing after it"),
        ("set self=1", "there is no setting 'self'"),
        ("set learning_rate=inf", "learning_rate cannot be inf"),
        ("play 3", "play takes nothing after it"),
        ("graph 3", "graph takes nothing after it"),
        ("graph", "no step was taken yet: type %mlx_step 1 first"),
        ("set learning_rate", "set takes NAME=VALUE"),
        ("set learning_rate=abc", "learning_rate is a number, not 'abc'"),
        ("set momentun=0.3", "there is no setting 'momentun'"),
        ("until lss < 1", "lss, at character 1, is not measured; type one of loss"),
        ("break frobnicate > 1", "is not measured"),
        ("budget lots", "'lots' is not a size: type bytes, 4GB, 512MiB"),
        ("compare main", "takes two branches"),
        ("load /nowhere/at/all", "nowhere"),
        ("back 5", "there are 0 steps to go back from here, not 5"),
    ],
)
def test_bad_lines_are_one_line(shell: InteractiveShell, line: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        said(shell, line)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_help_names_everything(shell: InteractiveShell) -> None:
    text = said(shell, "--help")
    assert "%mlx_step until EXPR" in text and "%mlx_step restart-batches" in text


def test_words_are_completed(shell: InteractiveShell) -> None:
    def found(line: str) -> list[str]:
        return list(shell.complete(line, line)[1])

    said(shell, "3")
    assert "graph" in found("%mlx_step gr")
    assert "back" in found("%mlx_step ba") and "restart-batches" in found("%mlx_step re")
    assert "learning_rate=" in found("%mlx_step set lear")
    assert "main" in found("%mlx_step switch m")
    assert "layers.2" in found("%mlx_step freeze layers.")
    assert "loss" in found("%mlx_step until lo")


def test_ctrl_c_in_a_cell_that_waits_for_a_hanging_step_is_one_line(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.run_cell_magic("mlx_dist", "", HANGING)
    said(shell, "3")
    said(shell, "play")
    stepping = shell.magics_manager.registry["StepMagics"]._of_ranks()
    until(lambda: stepping.state.step == 5)
    request = Stepping._request_stop

    def interrupting(stepping: Stepping) -> None:
        request(stepping)
        signal.raise_signal(signal.SIGINT)

    push, back, graph = "%mlx_dist push word", "%mlx_step back", "%mlx_graph X --ranks all"
    for line in ("%%mlx_dist\nran = True", push, back, graph):
        shell.user_ns["word"] = "new"
        with monkeypatch.context() as patch, capture_output() as captured:
            patch.setattr(Stepping, "_request_stop", interrupting)
            result = shell.run_cell(line)
        assert isinstance(result.error_in_exec, GivenUp)
        shown = captured.stdout.strip()
        assert "KeyboardInterrupt" in shown and "nothing was run, it waited for the step" in shown
        assert "%mlx_dist interrupt breaks it off" in shown and len(shown.splitlines()) == 1
    with capture_output() as captured:
        shell.run_line_magic("mlx_dist", "interrupt")
    with capture_output() as captured:
        shell.run_cell_magic(
            "mlx_dist", "",
            "hangs[0] = False\nprint(stepper.step, 'ran' in globals(), 'word' in globals())",
        )  # fmt: skip
    assert captured.stdout.count("False False") and "True" not in captured.stdout
    assert said(shell, "to 3").startswith("step 3 ")
    assert said(shell, "7").startswith("step 10 ")
