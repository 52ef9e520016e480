"""``%%mlx_generate``: how its line is read, and what Tab offers on it."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import FakeModel
from IPython.core.completer import provisionalcompleter
from IPython.utils.capture import capture_output

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.language_model import Generated


def run(shell: Any, line: str, cell: str = "Once upon a time\n") -> str:
    with capture_output() as out:
        shell.run_cell_magic("mlx_generate", line, cell)
    return "".join(str(each.data.get("text/plain")) for each in out.outputs)


def test_the_cell_is_the_prompt(shell: Any) -> None:
    lm = shell.user_ns["lm"] = FakeModel("there was a fox", "yes", "no", "so")
    shell.user_ns["warmth"] = 0.5
    assert "there was" in run(shell, "")
    run(shell, "lm max_tokens=20 temperature=warmth seed=3 --out answer", "a\nb\n")
    assert isinstance(shell.user_ns["answer"], Generated) and shell.user_ns["answer"].text == "yes"
    run(shell, 'system="Be brief" # a remark', "Who?")
    run(shell, "chat=True keep=1", "Who?")
    user = {"role": "user", "content": "Who?"}
    default = {"seed": None, "keep": ""}
    assert lm.asked == [
        ("Once upon a time", 256, default),
        ("a\nb", 20, {"seed": 3, "keep": "", "temperature": 0.5}),
        ([{"role": "system", "content": "Be brief"}, user], 256, default),
        ([user], 256, {"seed": None, "keep": "1"}),
    ]


def test_the_model_that_was_loaded_last_is_meant(shell: Any) -> None:
    first, second = FakeModel("first"), FakeModel("second", "third")
    shell.user_ns.update(small=second, lm=first)
    assert "second" in run(shell, "")
    assert "first" in run(shell, "lm")
    with capture_output() as out:
        shell.run_line_magic("mlx_generate", "")
    assert out.stdout.splitlines()[0].startswith("small: LanguageModel fake (llama), tensor on 2")
    second.cluster.client.closed = True  # its ranks are down
    first.answers = ["first"]
    assert "first" in run(shell, "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("other", "'other' is no language model; there is lm"),
        ("tmep=1", "there is no option 'tmep=1'; did you mean temp=?"),
        ("lm fast", "there is no option 'fast'"),
        ("temp=warm", "temp= takes a number or a variable, not 'warm'"),
        ("--out", "--out takes the name of a variable: type --out answer"),
        ('system="a', "a quote is not closed"),
    ],
)
def test_what_cannot_be_read(shell: Any, line: str, said: str) -> None:
    shell.user_ns["lm"] = FakeModel()
    with pytest.raises(UsageError, match=said):
        run(shell, line)


def test_without_a_model_it_says_what_to_type(shell: Any) -> None:
    with pytest.raises(UsageError, match="no language model is loaded: type from mlxbench_kernel"):
        run(shell, "")
    with capture_output() as out:
        shell.run_line_magic("mlx_generate", "")
        shell.run_line_magic("mlx_generate", "--help")
    assert "no language model is loaded" in out.stdout
    assert "%%mlx_generate temp=X" in out.stdout and "repetition_penalty" in out.stdout
    with pytest.raises(UsageError, match="the text to go on with stands in the lines below"):
        shell.run_line_magic("mlx_generate", "Once upon a time")


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("%%mlx_generate l", "lm"),
        ("%%mlx_generate lm max", "max_tokens="),
        ("%%mlx_generate sy", "system="),
        ("%%mlx_generate lm temp=1 --o", "--out"),
        ("%%mlx_generate chat=", "chat=True"),
    ],
)
def test_tab(shell: Any, text: str, offered: str) -> None:
    shell.user_ns["lm"] = FakeModel()
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    assert offered in [each.text for each in found]
