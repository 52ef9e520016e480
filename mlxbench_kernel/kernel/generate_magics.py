"""``%%mlx_generate``: the text of a cell goes to a language model on the ranks."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, magics_class

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel.arguments import nearest, split_words
from mlxbench_kernel.kernel.words import Word, help_text

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from mlxbench_kernel.widgets.language_model import LanguageModel

OWN = ("max_tokens", "seed", "keep", "chat", "system")
TEXTS = ("keep", "system")
EXAMPLE = "%%mlx_generate max_tokens=200 temp=0.7"
WORDS = {
    "[MODEL]": Word("", "lm", "which one, by its variable; without it the one loaded last"),
    "max_tokens=N": Word("", "max_tokens=200", "tokens at most (256)"),
    "temp=X": Word("", "temp=0.7", "0 takes the likeliest token; top_p=, top_k=, min_p= likewise"),
    "seed=N": Word("", "seed=1", "of the sampling; without it a random one"),
    "chat=True": Word("", "chat=True", "put the text into the model's chat template"),
    'system="…"': Word("", 'system="Be brief"', "what a chat model is told before the text"),
    "keep=NAME": Word("", "keep=story", "keep the KV cache for a text that begins alike"),
    "--out NAME": Word("", "--out answer", "put what is generated into a variable"),
}


@magics_class
class GenerateMagics(Magics):
    """The magic of one shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._of = shell

    @line_cell_magic
    def mlx_generate(self, line: str, cell: str | None = None) -> None:
        """Have a language model on the ranks go on with the text of the cell.

        ::

            lm = LanguageModel.load("path or name")

            %%mlx_generate max_tokens=200 temp=0.7
            Once upon a time

            %%mlx_generate lm chat=True system="Be brief" --out answer
            What is a ring all-reduce?

            %mlx_generate                       which models are loaded
            %mlx_generate --help                all options
        """
        words = split_words(line)
        if {"--help", "-h", "help"} & {*words}:
            print(help_text("%%mlx_generate", WORDS))
            print(f"all options: {', '.join(_known())}")
            return
        models = models_in(self._of)
        if cell is None:
            self._show(models, words)
            return
        out, words = _out(words)
        name, words = _model(words, models)
        options = {}
        for word in words:
            option, value = self._option(word)
            options[option] = value
        lm: LanguageModel = models[name]
        prompt: Any = cell.removesuffix("\n")
        system, chat = options.pop("system", ""), options.pop("chat", False)
        if chat or system:
            prompt = [{"role": "user", "content": prompt}]
            if system:
                prompt.insert(0, {"role": "system", "content": system})
        found = lm.generate(prompt, **options)
        if out:
            self._of.push({out: found})

    def _show(self, models: dict[str, Any], words: list[str]) -> None:
        """Say which models there are."""
        if words:
            raise UsageError(
                "%mlx_generate: the text to go on with stands in the lines below: type "
                f"{EXAMPLE} and the text under it"
            )
        for name, lm in models.items():
            print(f"{name}: {lm!r}")
        print(f"{EXAMPLE} with a text under it has {next(iter(models), 'lm')} go on with that"
              if models else NONE)  # fmt: skip

    def _option(self, word: str) -> tuple[str, Any]:
        """An option and its value, which may be a variable's."""
        name, equals, text = word.partition("=")
        if not equals or name not in _known():
            near = nearest(name, _known())
            meant = f"did you mean {near}=?" if near else f"type {EXAMPLE}"
            raise UsageError(f"%%mlx_generate: there is no option {word!r}; {meant}")
        if name in TEXTS:
            return name, text
        if text.isidentifier() and text in self._of.user_ns:
            return name, self._of.user_ns[text]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise UsageError(
                f"%%mlx_generate: {name}= takes a number or a variable, not {text!r}: "
                f"type {EXAMPLE}"
            ) from None
        return name, value


NONE = (
    "no language model is loaded: type from mlxbench_kernel import LanguageModel; "
    'lm = LanguageModel.load("folder or name")'
)


def models_in(shell: InteractiveShell) -> dict[str, Any]:
    """The language models of a notebook whose ranks are up, by variable, the latest first."""
    module = sys.modules.get("mlxbench_kernel.remote.language_model")
    if module is None:  # nobody has loaded one
        return {}
    found = {
        name: each
        for name, each in list(shell.user_ns.items())
        if isinstance(each, module.ModelOnRanks)
        and not name.startswith("_")
        and not each.cluster.client.closed
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].number))


def _known() -> tuple[str, ...]:
    """All options."""
    from mlxbench_kernel.models import sampling  # with MLX, which a kernel does not need at first

    return (*OWN, *sampling.OPTIONS, *sampling.OTHER_NAMES)


def _out(words: list[str]) -> tuple[str, list[str]]:
    """What follows ``--out``, and the other words."""
    if "--out" not in words:
        return "", words
    place = words.index("--out")
    name = "".join(words[place + 1 : place + 2])
    if not name.isidentifier():
        raise UsageError("%%mlx_generate: --out takes the name of a variable: type --out answer")
    return name, [*words[:place], *words[place + 2 :]]


def _model(words: list[str], models: dict[str, Any]) -> tuple[str, list[str]]:
    """Which model is meant, and the other words."""
    if not models:
        raise UsageError(NONE)
    if not words or "=" in words[0] or words[0].startswith("-"):
        return next(iter(models)), words
    if words[0] not in models:
        there = ", ".join(models)
        raise UsageError(f"%%mlx_generate: {words[0]!r} is no language model; there is {there}")
    return words[0], words[1:]


def offered(shell: InteractiveShell, before: list[str], word: str) -> list[str]:
    """What can stand after some words of the magic's line."""
    if before and before[-1] == "--out":
        return []
    if word.startswith("-"):
        return ["--out", "--help"]
    if word.startswith("chat="):
        return ["chat=True"]
    used = {each.partition("=")[0] for each in before}
    names = [] if before else list(models_in(shell))
    return [*names, *(f"{name}=" for name in _known() if name not in used)]
