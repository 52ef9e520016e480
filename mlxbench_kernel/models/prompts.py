"""What a model is asked: text, tokens or a conversation, as tokens that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.part import Part

Prompt = str | Sequence[int] | Sequence[dict[str, Any]]


def encode(part: Part, prompt: Prompt) -> list[int]:
    """The tokens of a prompt.

    Parameters
    ----------
    part
        Whose tokenizer.
    prompt
        Text as it is; tokens; or messages with ``role`` and ``content``, which the model's chat
        template puts together.

    Raises
    ------
    UsageError
        It is empty or longer than the model's context, has tokens that are none, or there is no
        chat template, or one that does not take the messages.
    """
    tokens = _tokens(part, prompt)
    if not tokens:
        raise UsageError("the prompt is empty: give some text")
    longest = part.context
    if longest is not None and len(tokens) >= longest:
        raise UsageError(
            f"the prompt has {len(tokens):,} tokens and the model a context of {longest:,}: "
            "shorten it"
        )
    return tokens


def _tokens(part: Part, prompt: Prompt) -> list[int]:
    tokenizer = part.tokenizer
    if isinstance(prompt, str):
        if not prompt:
            return []
        # As ``mlx_lm.stream_generate`` does.
        special = tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
        return list(tokenizer.encode(prompt, add_special_tokens=special))
    given = list(prompt)
    if given and isinstance(given[0], dict):
        if not tokenizer.has_chat_template:
            raise UsageError(
                f"{part.folder.name} has no chat template: give text, or a model that was made for "
                "conversations"
            )
        if not all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in given):
            raise UsageError(
                "each message is a dict with a role and a content: give such ones, as "
                "{'role': 'user', 'content': 'Hello'}"
            )
        try:
            return list(tokenizer.apply_chat_template(given, add_generation_prompt=True))
        except Exception as error:  # of the template, which may want roles to alternate, say
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"the chat template of {part.folder.name} does not take these messages: {line}"
            ) from None
    numbers = [each for each in given if isinstance(each, int) and not isinstance(each, bool)]
    if len(numbers) != len(given):
        raise UsageError("a prompt is text, a list of tokens or a list of messages: give one")
    end = part.vocabulary or math.inf
    for each in numbers:
        if not 0 <= each < end:
            raise UsageError(
                f"{each} is no token of {part.folder.name}: it has {end} of them, from 0 on"
            )
    return numbers
