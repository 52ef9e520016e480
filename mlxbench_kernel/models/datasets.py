"""Reads what a model is tuned on, as mlx-lm does, and says which line is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError

SETS = ("train", "valid", "test")
LONGEST_PIECE = 512  # tokens of a plain text, cut without being told how
SHORTEST_PIECE = 32
PIECES = 8  # batches that a short text should give at least
HELD_OUT = 10  # one of so many pieces of a plain text is for validation
LONGEST_PATH = 400  # characters; what is longer is text

Progress = Callable[[int, int], None]  # examples that were read, of how many
Data = str | Path | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Examples:
    """What is trained on, or validated with, as tokens.

    Attributes
    ----------
    tokens : list of int32 [n]
        Of each example.
    offsets : list of int
        How many of them are a prompt, which is not trained (``mask_prompt``).
    pieces : bool
        Whether they are pieces of a text that goes on after each. mlx-lm trains one more token than
        an example has, a 0 that stands for its end; a piece has no such end.
    """

    tokens: list[NDArray[np.int32]]
    offsets: list[int]
    pieces: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return max(map(len, self.tokens), default=0)

    def longer_than(self, length: int) -> int:
        """How many have more tokens than that."""
        return sum(len(each) > length for each in self.tokens)

    @property
    def digest(self) -> str:
        """What tells examples apart, the same wherever they are the same."""
        found = hashlib.sha256()
        for tokens, offset in zip(self.tokens, self.offsets, strict=True):
            found.update(np.array([len(tokens), offset], np.int64).tobytes())
            found.update(tokens.tobytes())
        return found.hexdigest()


def read(
    data: Data,
    tokenizer: Any,
    *,
    mask_prompt: bool = False,
    features: Mapping[str, str] | None = None,
    max_seq_length: int = 2048,
    batch_size: int = 4,
    progress: Progress = lambda done, total: None,
) -> dict[str, Examples]:
    """Read the sets of a data set, all of it, so that what is wrong is found before training.

    Parameters
    ----------
    data
        A folder with ``train.jsonl``, and ``valid.jsonl`` and ``test.jsonl`` if there are such, as
        mlx-lm reads it (``mlx_lm.tuner.datasets``): each line has ``messages`` (a conversation),
        ``prompt`` and ``completion``, or ``text``. One such file. A list of such dicts, or a dict
        of such lists by the name of the set. Or plain text: a file of it, or a string of several
        lines; it is cut into pieces, the last tenth of which is for validation.
    tokenizer
        Of the model.
    mask_prompt
        Whether a prompt, or what comes before the last message, is not trained.
    features
        Other names of these fields, by mlx-lm's name of that: ``prompt_feature``,
        ``completion_feature``, ``chat_feature``, ``text_feature``.
    max_seq_length, batch_size
        Plain text is cut into pieces of 512 tokens, or as many as a sequence may have; of less
        where it would not fill eight batches.
    progress
        Is told how far it is.

    Returns
    -------
    dict
        ``train``, ``valid`` and ``test``, each of which may be empty but the first.

    Raises
    ------
    UsageError
        There is no such folder or file, a line is wrong (with file and number), or there is
        nothing to train on.
    """
    config = SimpleNamespace(mask_prompt=mask_prompt, **(features or {}))
    text, named = _text_or_records(data)
    if text is not None:
        if mask_prompt:
            raise UsageError("mask_prompt is for prompts, and plain text has none: leave it out")
        found = _cut(text, tokenizer, max_seq_length, batch_size)
    else:
        total = sum(len(records) for records in named.values())
        done = 0
        found = {}
        for name in SETS:
            records = named.get(name, [])

            def tell(count: int, before: int = done) -> None:
                progress(before + count, total)

            found[name] = _tokens(records, tokenizer, config, tell)
            done += len(records)
    if not len(found["train"]):
        raise UsageError(
            f"{_name(data)} has nothing to train on: put at least {batch_size} examples into it"
        )
    return found


Record = tuple[str, Any]  # where it is from, and what it is


def _text_or_records(data: Data) -> tuple[str | None, dict[str, list[Record]]]:
    if isinstance(data, (str, Path)):
        if isinstance(data, str) and ("\n" in data or len(data) > LONGEST_PATH):
            return data, {}
        return _of_path(Path(data).expanduser())
    if isinstance(data, Mapping):
        if unknown := set(data) - set(SETS):
            raise UsageError(
                f"data has the key {min(map(str, unknown))!r}: its keys are {', '.join(SETS)}"
            )
        named = {name: list(records) for name, records in data.items()}
    else:
        named = {"train": list(data)}
    return None, {
        name: [(f"{name}[{number}]", record) for number, record in enumerate(records)]
        for name, records in named.items()
    }


def _of_path(path: Path) -> tuple[str | None, dict[str, list[Record]]]:
    try:
        if path.is_dir():
            files = {name: path / f"{name}.jsonl" for name in SETS}
            if not files["train"].exists():
                raise UsageError(f"there is no train.jsonl in {path}: name the folder that has it")
            return None, {name: _lines(file) for name, file in files.items() if file.exists()}
        if path.suffix == ".jsonl" and path.is_file():
            return None, {"train": _lines(path)}
        if path.is_file():
            return path.read_text(encoding="utf-8"), {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"{path} cannot be read: {reason}") from None
    raise UsageError(
        f"there is no folder or file {path}: give a folder with train.jsonl, a file, a list of "
        "dicts, or a text of several lines"
    )


def _lines(file: Path) -> list[Record]:
    found = []
    with file.open(encoding="utf-8") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                found.append((place, json.loads(line)))
            except ValueError as error:
                raise UsageError(f"{place}: this is no JSON ({error}): mend that line") from None
    return found


def _tokens(
    records: Sequence[Record], tokenizer: Any, config: Any, tell: Callable[[int], None]
) -> Examples:
    from mlx_lm.tuner.datasets import create_dataset

    found = Examples([], [])
    if not records:
        return found
    names = _fields(records[0], config)
    for place, record in records:
        for name in names:
            if not isinstance(record, dict) or name not in record:
                raise UsageError(f"{place}: there is no {name!r} as in the first one: add it")
    if names == [getattr(config, "chat_feature", "messages")]:
        _check_messages(records, names[0])
    dataset: Any = _created(create_dataset, records, tokenizer, config, names)
    for number, (place, record) in enumerate(records):
        try:
            tokens, offset = dataset.process(record)
        except Exception as error:  # of the tokenizer or the chat template
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{place}: it cannot be made into tokens ({line})") from None
        if not tokens:
            raise UsageError(f"{place}: there is nothing in it: take it out")
        found.tokens.append(np.array(tokens, np.int32))
        found.offsets.append(int(offset))
        if number % 100 == 0 or number + 1 == len(records):
            tell(number + 1)
    return found


def _fields(first: Record, config: Any) -> list[str]:
    """The fields that each example has, by those of the first, as mlx-lm decides it."""
    place, record = first
    prompt = getattr(config, "prompt_feature", "prompt")
    completion = getattr(config, "completion_feature", "completion")
    chat = getattr(config, "chat_feature", "messages")
    text = getattr(config, "text_feature", "text")
    known = record if isinstance(record, dict) else {}
    if prompt in known and completion in known:
        return [prompt, completion]
    for name in (chat, text):
        if name in known:
            return [name]
    raise UsageError(
        f"{place}: each example is a dict with {chat!r}, with {prompt!r} and {completion!r}, or "
        f"with {text!r}: write one of these"
    )


def _check_messages(records: Sequence[Record], name: str) -> None:
    """A chat template makes nothing of what is no message, without a word."""
    for place, record in records:
        messages = record[name]
        good = isinstance(messages, list) and all(
            isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages
        )
        if not good or not messages:
            raise UsageError(
                f"{place}: {name!r} is no list of dicts with a role and a content: mend that line"
            )


def _created(
    create: Any, records: Sequence[Record], tokenizer: Any, config: Any, names: Sequence[str]
) -> Any:
    if names == [getattr(config, "text_feature", "text")]:
        if config.mask_prompt:
            raise UsageError("mask_prompt is for prompts, and these are texts: leave it out")
        if empty := next((place for place, each in records if not each[names[0]]), None):
            raise UsageError(f"{empty}: {names[0]!r} is empty: take it out")
    elif not tokenizer.has_chat_template:
        raise UsageError(
            f"{records[0][0]}: conversations and prompts need a chat template, which this model "
            "lacks: write the whole into 'text'"
        )
    return create([record for _, record in records], tokenizer, config)


def _cut(text: str, tokenizer: Any, longest: int, batch_size: int) -> dict[str, Examples]:
    """Pieces of a plain text, each of which begins with the last token of the one before."""
    tokens = np.array(tokenizer.encode(text), np.int32)
    most = min(longest - 1, LONGEST_PIECE)
    length = min(max(len(tokens) // (PIECES * batch_size), SHORTEST_PIECE), most)
    pieces = [
        tokens[begin : begin + length + 1] for begin in range(0, max(len(tokens) - 1, 0), length)
    ]
    kept = len(pieces) - len(pieces) // HELD_OUT
    return {
        name: Examples(some, [0] * len(some), pieces=True)
        for name, some in zip(SETS, (pieces[:kept], pieces[kept:], []), strict=True)
    }


def _name(data: Data) -> str:
    if isinstance(data, Path) or (isinstance(data, str) and "\n" not in data):
        return str(data)[:LONGEST_PATH]
    return "the text" if isinstance(data, str) else "data"
