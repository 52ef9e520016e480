"""Messages of a conversation in a file, as programs that chat with models write them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxbench_kernel.errors import StorageError, UsageError

ROLES = ("system", "user", "assistant")


def write(messages: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write messages as JSON.

    Raises
    ------
    StorageError
        The file cannot be written; what was there before still is.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(json.dumps(list(messages), indent=1, ensure_ascii=False), "utf-8")
        os.replace(new, path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise StorageError(f"{path} could not be written: {error.strerror}") from None


def read(path: Path) -> list[dict[str, str]]:
    """Read messages that `write` has written.

    Raises
    ------
    UsageError
        There is no such file, or something else is in it.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # UnicodeDecodeError is one too
        raise UsageError(f"{path} is no JSON: {error}") from None
    return _checked(found, path)


def _checked(found: Any, path: Path) -> list[dict[str, str]]:
    if not isinstance(found, list):
        raise UsageError(f"{path} holds no list of messages, as chat.save writes it")
    for number, each in enumerate(found):
        good = (
            isinstance(each, Mapping)
            and each.get("role") in ROLES
            and isinstance(each.get("content"), str)
        )
        if not good:
            raise UsageError(
                f"{path}: message {number + 1} is none: it has to have a role, one of "
                f"{', '.join(ROLES)}, and a content, a text"
            )
    return [{"role": each["role"], "content": each["content"]} for each in found]
