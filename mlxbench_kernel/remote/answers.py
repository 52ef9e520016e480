"""What a model answers to some prompts, kept to be laid beside what it answers later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.asking import Tell
from mlxbench_kernel.remote.language_model import ModelOnRanks, Prompt, plain_prompt

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Answers:
    """What a model has answered.

    Attributes
    ----------
    model : str
        Which one, in words.
    prompts : list
        Text, tokens or messages.
    texts : list of str
        The answer to each.
    options : dict
        With which they were generated: ``max_tokens``, ``seed``, and of sampling.
    """

    model: str
    prompts: list[Any]
    texts: list[str]
    options: dict[str, Any]


def answers_on(
    lm: ModelOnRanks,
    prompts: Sequence[Prompt],
    max_tokens: int = 64,
    *,
    seed: int = 0,
    progress: Progress = lambda done, text: None,
    show: Tell = lambda text: None,
    **options: Any,
) -> Answers:
    """Generate an answer to each prompt; the same again with the same model and seed.

    Raises
    ------
    UsageError
        There is no prompt, or one of them or an option cannot be.
    """
    given = [prompts] if isinstance(prompts, str) else [plain_prompt(each) for each in prompts]
    if not given:
        raise UsageError("there are no prompts: give some, as ['Once upon a time']")
    texts = []
    for number, prompt in enumerate(given):
        progress(number / len(given), f"prompt {number + 1} of {len(given)}")
        made = lm.generate_on_ranks(prompt, max_tokens, seed=seed, show=show, **options)
        texts.append(made.text)
    return Answers(
        repr(lm), list(given), texts, {"max_tokens": max_tokens, "seed": seed, **options}
    )


def answers_beside(
    lm: ModelOnRanks,
    before: Answers | Sequence[Prompt],
    other: ModelOnRanks | None = None,
    *,
    progress: Progress = lambda done, text: None,
    show: Tell = lambda text: None,
    **options: Any,
) -> tuple[Answers, Answers]:
    """What was answered before, or by another model, and what this model answers now.

    Parameters
    ----------
    lm
        The model.
    before
        What it, or another one, has answered; the prompts and options are taken from there. Or
        prompts, which `other` is to answer too.
    other
        For prompts.
    progress, show
        Told how far it is, and who is late.
    **options
        For prompts, as of `answers_on`.

    Raises
    ------
    UsageError
        There is nothing to lay beside, or as for `answers_on`.
    """
    if not isinstance(before, Answers):
        if other is None:
            raise UsageError(
                "there is nothing to lay beside: keep before = lm.answers(prompts) and type "
                "lm.side_by_side(before), or give the other model too"
            )
        before = answers_on(other, before, progress=progress, show=show, **options)
    elif options:
        raise UsageError(
            f"{', '.join(options)}: the options are those of the answers from before; leave it out"
        )
    return before, answers_on(lm, before.prompts, progress=progress, show=show, **before.options)
