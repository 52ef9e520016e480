"""What a user gives, as ranks can be told it: prompts, and paths."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

from mlxbench_kernel.errors import UsageError

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


def plain_prompt(prompt: Prompt) -> Any:
    """A prompt as it can be written into a cell.

    Raises
    ------
    UsageError
        It is none.
    """
    if isinstance(prompt, str):
        return prompt
    try:
        if isinstance(prompt, (bytes, Mapping)):
            raise TypeError
        return [dict(each) if isinstance(each, Mapping) else index(each) for each in prompt]
    except TypeError:
        raise UsageError(
            "a prompt is text, a list of tokens or a list of messages: give one, in place of "
            f"{str(prompt)[:60]!r}"
        ) from None


def as_ranks_find_it(path: str | os.PathLike[str]) -> str:
    """A path as all ranks on this host's file system find it; a name on the hub as it is.

    Raises
    ------
    UsageError
        It is neither.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise UsageError(
            f"{path!r} is no folder and no name on the hub: type one, as mlx-community/NAME"
        ) from None
    here = Path(text).expanduser()
    if here.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return str(here.absolute())
    return text
