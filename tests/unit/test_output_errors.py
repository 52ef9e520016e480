"""Errors of several ranks become one exception that a reader can use."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel

from mlxbench_kernel.errors import CellError
from mlxbench_kernel.kernel.output import CellOutput
from mlxbench_kernel.kernel.output.ansi import strip


@pytest.fixture(scope="module")
def client() -> Iterator:
    manager, client = start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def raised(client):
    """Runs cells in a real kernel; gives the content of the last one's ``error`` message."""

    def run(*cells: str) -> dict:
        found: list[dict] = []

        def hook(message: dict) -> None:
            if message["header"]["msg_type"] == "error":
                found.append(message["content"])

        for cell in cells:
            client.execute_interactive(cell, output_hook=hook, allow_stdin=False, timeout=60)
        return {name: found[-1][name] for name in ("ename", "evalue", "traceback")}

    return run


def rendered(error: CellError) -> str:
    return strip("\n".join(error._render_traceback_()))


DIVIDE = "a = 1\n\nb = 0\na / b\nprint('never')"


def test_no_error_no_exception():
    assert CellOutput([0, 1], 2).failure() is None


def test_one_rank_raises_and_the_line_of_the_cell_is_named(raised):
    output = CellOutput(range(4), 4, execution_count=9)
    output.error(1, **raised(DIVIDE))
    error = output.failure()
    assert isinstance(error, CellError)
    assert str(error) == (
        "rank 1 of 4 raised ZeroDivisionError: division by zero (line 4 of the cell)"
    )
    text = rendered(error)
    assert text.startswith("[1] ZeroDivisionError\nCell In[9], line 4\n")
    assert "----> 4 a / b" in text
    assert text.endswith("ZeroDivisionError: division by zero")
    assert "Traceback (most recent call last)" not in text


def test_lines_are_counted_as_in_the_notebook_where_a_magic_stands_above(raised):
    cell = "\n".join([*(f"x{i} = {i}" for i in range(8)), "1 / 0", "y = 1"])
    output = CellOutput([0], 2, first_line=2)
    output.error(0, **raised(cell))
    error = output.failure()
    assert "(line 10 of the cell)" in str(error)
    lines = rendered(error).split("\n")
    assert "This cell, line 10" in lines
    assert any(re.fullmatch(r"---> 10 1 ?/ ?0", line) for line in lines)
    assert any(re.fullmatch(r" {5}11 y = 1", line) for line in lines)
    assert any(re.fullmatch(r" {6}9 x7 = 7", line) for line in lines)


def test_a_syntax_error_keeps_its_code_as_it_is(raised):
    output = CellOutput([0], 2, first_line=2)
    output.error(0, **raised("x = 1\n5 +* 2"))
    error = output.failure()
    assert str(error) == "rank 0 of 2 raised SyntaxError: invalid syntax (line 3 of the cell)"
    text = rendered(error)
    assert "This cell, line 3" in text
    assert "    5 +* 2" in text


def test_a_function_of_an_earlier_cell_is_not_taken_for_this_cell(raised):
    output = CellOutput([0], 2, first_line=2)
    output.error(0, **raised("def f(x):\n    return x / 0", "y = 2\nf(y)"))
    error = output.failure()
    assert "(line 3 of the cell)" in str(error)
    text = rendered(error)
    assert "This cell, line 3" in text
    assert "Earlier cell, line 2, in f(x)" in text
    assert "----> 2     return x / 0" in text


def test_chained_exceptions_are_shown_both(raised):
    output = CellOutput([0], 2)
    output.error(
        0, **raised("try:\n    1 / 0\nexcept Exception as e:\n    raise KeyError(1) from e")
    )
    text = rendered(output.failure())
    assert "ZeroDivisionError: division by zero" in text
    assert "direct cause" in text
    assert text.endswith("KeyError: 1")


def test_the_kernels_own_frames_in_front_are_not_shown(raised):
    error = raised(DIVIDE)
    error["traceback"][2:2] = [
        "File ~/env/lib/python3.11/site-packages/ipykernel/ipkernel.py:400, in do_execute(self)\n"
        "    399 x\n--> 400 run()",
        "\x1b[36mFile \x1b[39m\x1b[32m/env/site-packages/IPython/core/async_helpers.py:128\x1b[39m"
        ", in _pseudo\n--> 128 coro.send(None)",
    ]
    output = CellOutput([0], 2)
    output.error(0, **error)
    text = rendered(output.failure())
    assert "ipkernel" not in text
    assert "async_helpers" not in text
    assert "----> 4 a / b" in text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("<Layer object at 0x7f00aa10>", "<Layer object at 0x10e3bc80>", True),
        ("no file /tmp/tmpab12/x", "no file /tmp/tmpzz99/x", True),
        ("no file /var/folders/zz/T/a", "no file /private/var/folders/yy/T/b", True),
        ("shape (3, 4)", "shape (3, 5)", False),
        ("loss is nan at step 3", "loss is nan at step 4", False),
    ],
)
def test_errors_are_the_same_if_only_addresses_and_temporary_paths_differ(one, other, same):
    output = CellOutput([0, 1], 2)
    output.error(0, "ValueError", one, [f"Cell In[3], line 1\n1 f()\n{one}"])
    output.error(1, "ValueError", other, [f"Cell In[5], line 1\n1 f()\n{other}"])
    assert [error.ranks for error in output.errors] == ([(0, 1)] if same else [(0,), (1,)])


def test_many_ranks_with_one_error_show_it_once(raised):
    output = CellOutput(range(8), 8)
    error = raised(DIVIDE)
    for rank in range(8):
        output.error(rank, **error)
    assert str(output.failure()).startswith("all 8 ranks raised ZeroDivisionError")
    text = rendered(output.failure())
    assert text.startswith("[0-7] ZeroDivisionError\n")
    assert text.count("a / b") == 1


def test_different_errors_are_all_named_in_the_first_line(raised):
    output = CellOutput(range(4), 4)
    for rank in (3, 0):
        output.error(rank, "RuntimeError", "connection to a peer was lost\nmore of it", [])
    output.error(1, **raised(DIVIDE))
    error = output.failure()
    assert str(error) == (
        "ranks 0-1,3 of 4 raised 2 different errors: "
        "[0,3] RuntimeError: connection to a peer was lost; "
        "[1] ZeroDivisionError: division by zero"
    )
    text = rendered(error)
    assert text.startswith(f"CellFailure: {error}\n")
    assert "\n[0,3] RuntimeError\nRuntimeError: connection to a peer was lost\nmore of it" in text
    assert "\n[1] ZeroDivisionError\n" in text


def test_one_error_at_different_places_is_said_once_with_the_places(raised):
    output = CellOutput(range(2), 2)
    output.error(0, **raised("x = 1\nraise KeyboardInterrupt"))
    output.error(1, **raised("raise KeyboardInterrupt"))
    assert str(output.failure()) == (
        "all 2 ranks raised KeyboardInterrupt: [0] line 2, [1] line 1 of the cell"
    )


def test_eight_different_errors_stay_readable():
    output = CellOutput(range(8), 8)
    for rank in range(8):
        output.error(rank, "ValueError", f"rank {rank} " + "long " * 100, [f"trace {rank}"])
    error = output.failure()
    assert len(str(error)) < 500
    assert "and 3 more" in str(error)
    text = rendered(error)
    assert "trace 4" in text
    assert "trace 5" not in text
    assert "[7] ValueError: rank 7" in text


def test_ipython_shows_the_rendered_errors_and_stops(raised):
    output = CellOutput([0, 1], 2)
    output.error(1, **raised(DIVIDE))
    shell = InteractiveShell()
    shell.user_ns["error"] = output.failure()
    shown: list[str] = []
    shell._showtraceback = lambda etype, evalue, stb: shown.extend(stb)
    result = shell.run_cell("raise error")
    shell.history_manager.end_session()
    assert isinstance(result.error_in_exec, CellError)
    assert strip(shown[0]) == "[1] ZeroDivisionError"
